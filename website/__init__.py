"""The documentation site: how its pages are laid out, and how docstrings become Markdown."""
