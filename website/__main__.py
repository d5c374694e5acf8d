"""Build the site into a folder: python -m website SITE.

The pages are laid out as they lie in the repository: a link between two files works on a git host and in the site.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PUBLISHED = (
    "*.md",
    "LICENSE",
    "docs/**/*.*",
    "examples/**/*.py",
    "experiments/*/README.md",
    "benchmarks/results/*.png",
)


def lay_out(pages: Path) -> None:
    """Copy what is published."""
    for pattern in PUBLISHED:
        for source in ROOT.glob(pattern):
            target = pages / source.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def build(site: Path) -> str:
    """Build strictly; returns what Zensical said. What the folder holds is replaced, so it must be an earlier site."""
    if site.exists() and not (site.is_dir() and (not any(site.iterdir()) or (site / "404.html").is_file())):
        raise SystemExit(f"{site} exists and is no earlier site; give a new folder")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        lay_out(work / "pages")
        shutil.copyfile(ROOT / "mkdocs.yml", work / "mkdocs.yml")
        done = subprocess.run(
            [sys.executable, "-m", "zensical", "build", "--strict", "--config-file", str(work / "mkdocs.yml")],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            raise SystemExit(done.stdout)
        shutil.rmtree(site, ignore_errors=True)
        shutil.copytree(work / "site", site)
    return done.stdout


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("give a folder for the site: python -m website SITE")
    print(build(Path(sys.argv[1])))
