"""On a phone a table of sentences becomes a list of its rows, each cell under the name of its column: site.css does it
for the tables that are marked here. Tables of numbers scroll. A Markdown extension.
"""

from __future__ import annotations

from xml.etree.ElementTree import Element

from markdown import Markdown
from markdown.extensions import Extension
from markdown.treeprocessors import Treeprocessor

#: Characters of a cell that are too many for the room beside the first column.
LONG = 60


class MarkTables(Treeprocessor):
    """Gives cells the name of their column, and marks a table that has long ones."""

    def run(self, root: Element) -> None:
        """Called with the page's tree."""
        for table in root.iter("table"):
            names = ["".join(name.itertext()) for name in table.iter("th")]
            rows = [row.findall("td") for row in table.iter("tr")]  # of the head: none
            for cell, name in (pair for row in rows for pair in list(zip(row, names, strict=False))[1:] if pair[1]):
                cell.set("data-column", name)
            words = (cell for row in rows for cell in row[1:] if cell.get("style") is None)  # numbers are aligned
            if any(len("".join(cell.itertext())) > LONG for cell in words):
                table.set("data-sentences", "")


class Tables(Extension):
    """Comes after inline Markdown (priority 20)."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Called by Python-Markdown."""
        md.treeprocessors.register(MarkTables(md), "tables-of-sentences", 15)


def makeExtension(**settings: object) -> Tables:
    """Python-Markdown's name for what makes an extension."""
    return Tables(**settings)
