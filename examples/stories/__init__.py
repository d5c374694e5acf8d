"""Three stories, each a script with pictures that docs/stories.md tells: python -m examples.stories.NAME FOLDER."""
