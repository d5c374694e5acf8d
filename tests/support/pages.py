"""README, the pages of the site, and what lies beside them."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()
STUDIES = ROOT / "docs" / "studies"  # reports of runs
PAGES = [
    ROOT / "README.md",
    *sorted(page for page in (ROOT / "docs").rglob("*.md") if not page.is_relative_to(STUDIES)),
]


def rows(text: str) -> list[list[str]]:
    """Cells of the tables of a page, without emphasis."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip().strip("*") for cell in line.strip("|").split("|")] for line in lines]
