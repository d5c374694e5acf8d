"""Pages as notebooks. Jupytext makes them, so that prose and code are written once."""

from __future__ import annotations

import re
from pathlib import Path

PAGES = ("docs/quick-start.md", "docs/differentiate.md", "docs/stories.md")
FIGURE = re.compile(r"^\[!\[.*\n\n\*(?:.|\n)*?\*\n\n", flags=re.M)  # with its caption: a notebook is one file
LINK = re.compile(r"\[([^\]]*)\]\((?!https?:)[^)]*\)")
LINE = "[This page as a notebook]({name}), to run and to change."


def as_notebook(page: str) -> str:
    """The notebook, as JSON, of a page in Markdown. Links into the site become text."""
    import jupytext  # of the extra docs

    notebook = jupytext.reads(LINK.sub(r"\1", FIGURE.sub("", page)), "md")
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return jupytext.writes(notebook, "ipynb")


def add_notebooks(pages: Path) -> None:
    """Write the notebooks beside their pages; a line below a page's first paragraph leads to its own."""
    for page in (pages / name for name in PAGES):
        text, notebook = page.read_text(encoding="utf-8"), page.with_suffix(".ipynb")
        notebook.write_text(as_notebook(text), encoding="utf-8")
        title, first, rest = text.split("\n\n", 2)
        page.write_text("\n\n".join([title, first, LINE.format(name=notebook.name), rest]), encoding="utf-8")
