"""Make each target alone, in a fresh clone of its own: does it bring all that it needs?

Other targets hide it otherwise, because they leave their installations behind. Needs nothing but Python and git, and a
committed state. Logs stay in the folder; a clone goes after its target.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
#: Not made unless named: why.
LEFT_OUT = {
    "alone": "is this",
    "study": "hours; study-fast is the same command, smaller",
    "bench": "an hour on a machine that does nothing else",
    "thorough": "hours",
    "machines": "seven runs of make test",
    "mutants": "hours",
    "lowest": "gigabytes",
    "newest": "gigabytes",
}


def targets(makefile: str) -> list[str]:
    """All of them, in the order of the file."""
    named = re.search(r"^\.PHONY: (.+)$", makefile, flags=re.MULTILINE)
    assert named is not None
    return named[1].split()


def made(target: str, folder: Path) -> tuple[int, float]:
    """Exit status and seconds of `make TARGET`; the clone goes, as an environment has gigabytes."""
    clone = folder / target
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "VIRTUAL_"))
    }
    begin = time.monotonic()
    with (folder / f"{target}.log").open("w") as log:
        done = subprocess.run(["make", target], cwd=clone, env=environment, stdout=log, stderr=subprocess.STDOUT)
    seconds = time.monotonic() - begin
    shutil.rmtree(clone)
    return done.returncode, seconds


def main() -> int:
    known = targets((ROOT / "Makefile").read_text())
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="for clones and logs; must not exist yet")
    parser.add_argument(
        "--targets",
        nargs="+",
        choices=known,
        metavar="TARGET",
        default=[name for name in known if name not in LEFT_OUT],
    )
    args = parser.parse_args()
    if args.folder.exists():
        parser.error(f"{args.folder}: exists already; give a folder that does not")
    if subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, check=True, capture_output=True).stdout:
        print("what is not committed is not in the clones", file=sys.stderr)
    args.folder.mkdir(parents=True)
    failed = 0
    for target in args.targets:
        status, seconds = made(target, args.folder)
        failed += status != 0
        print(f"make {target:20} {'passed' if status == 0 else f'FAILED ({status})'} in {seconds:.0f} s", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
