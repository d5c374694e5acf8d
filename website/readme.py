"""README for a package index, which has none of the files that it links to: python -m website.readme PAGES FIGURES.

PAGES and FIGURES are where a git host shows the files of the released tag, and where it hands them out as they are;
RELEASING.md has examples. The README is printed with these addresses, and with the command that installs from the
index in the place of the one for a clone.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"
LINK = re.compile(r"```.*?```|`[^`\n]*`|\]\((?!https?:|mailto:)([^)\s]+)\)", flags=re.S)  # code comes first: it stays
#: The command for a clone, and that for the index.
IN_A_CLONE, FROM_INDEX = "pip install '.[cpu]'    # in a clone, ", "pip install 'hyperopt-ftp[cpu]'    # "


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
    text = README.read_text(encoding="utf-8")
    if text.count(IN_A_CLONE) != 1:
        raise SystemExit(f"{README.name} must have the line {IN_A_CLONE!r} once: it is replaced by {FROM_INDEX!r}")
    return absolute(text.replace(IN_A_CLONE, FROM_INDEX), *addresses)


if __name__ == "__main__":
    sys.stdout.buffer.write(main(sys.argv[1:]).encode())  # UTF-8, whatever the terminal has
