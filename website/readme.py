"""README for a package index, which has none of the files that it links to: python -m website.readme PAGES FIGURES.

PAGES and FIGURES are where a git host shows the files of the released tag, and where it hands them out as they are;
docs/releasing.md has examples. The README is printed with these addresses.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"
LINK = re.compile(r"```.*?```|`[^`\n]*`|\]\((?!https?:|mailto:)([^)\s]+)\)", flags=re.S)  # code comes first: it stays


def absolute(text: str, pages: str, figures: str) -> str:
    """Give each relative link its address; a figure is a file that a browser shows as it is."""

    def moved(found: re.Match[str]) -> str:
        target = found[1]
        if target is None:
            return found[0]
        base = figures if Path(target).suffix in {".png", ".svg"} else pages
        return f"]({base.rstrip('/')}/{README.name + target if target.startswith('#') else target})"

    return LINK.sub(moved, text)


def main(addresses: list[str]) -> str:
    if len(addresses) != 2 or not all(address.startswith("https://") for address in addresses):
        given = " ".join(addresses) or "nothing"
        raise SystemExit(
            f"give two addresses that begin with https://: python -m website.readme PAGES FIGURES; got {given}"
        )
    return absolute(README.read_text(encoding="utf-8"), *addresses)


if __name__ == "__main__":
    sys.stdout.buffer.write(main(sys.argv[1:]).encode())  # UTF-8, whatever the terminal has
