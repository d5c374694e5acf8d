"""Other libraries, each in a module of its name; a library is imported where it is used. See docs/integrations.md."""
