"""Build the site into a folder: python -m website SITE, or, beside those of other versions, --versions SITE.

The pages are laid out as they lie in the repository: a link between two files works on a git host and in the site.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from posixpath import normpath
from urllib.parse import urlsplit

from packaging.version import Version

from .notebooks import add_notebooks

ROOT = Path(__file__).parent.parent
PUBLISHED = (
    "CHANGELOG.md",  # README.md is the front page of a git host; docs/index.md is that of the site
    "CONTRIBUTING.md",
    "LICENSE",
    "LICENCES.md",  # this and the next two: linked, not in the navigation
    "RELEASING.md",
    "SECURITY.md",
    "docs/**/*.*",
    "examples/**/*.py",
    "experiments/*/README.md",
    "benchmarks/results/*.png",
    "benchmarks/meta/*.py",
    "tests/**/*.py",
)
LANDING = Path("docs", "index.md")
REPORTS = "docs/studies/*/report.md"  # not in the navigation
UNSEARCHED = (REPORTS, "experiments/*/README.md", "CHANGELOG.md")  # they would come before the pages that explain
NO_SEARCH = "---\nsearch:\n  exclude: true\n---\n"
ALONE = NO_SEARCH.replace("---\n", "---\nhide: [navigation]\n", 1)  # the room of a menu that would be empty
BACK = "\n\nNext: [all studies](../README.md), [what they say](../../results.md).\n"
TARGET = re.compile(r"(?<=\]\()(?!https?:|#)[^)\s]+")
VERSION = re.compile(r'^version = "(.+)"$', flags=re.M)


def lay_out(pages: Path) -> None:
    """Copy what is published; reports get a way back, the landing page goes to the top, and its links with it."""
    for pattern in PUBLISHED:
        for source in ROOT.glob(pattern):
            target = pages / source.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    add_notebooks(pages)
    for report in pages.glob(REPORTS):
        report.write_text(report.read_text(encoding="utf-8").rstrip() + BACK, encoding="utf-8")
    for page in (page for pattern in UNSEARCHED for page in pages.glob(pattern)):
        head = ALONE if page.match(REPORTS) else NO_SEARCH
        page.write_text(head + page.read_text(encoding="utf-8"), encoding="utf-8")
    landing = (pages / LANDING).read_text(encoding="utf-8")
    (pages / LANDING).unlink()
    from_top = TARGET.sub(lambda link: normpath((LANDING.parent / link[0]).as_posix()), landing)
    (pages / LANDING.name).write_text(from_top, encoding="utf-8")


def header(config: str, project: str) -> str:
    """The configuration with what pyproject.toml says: the version, and the repository where it has an address."""
    version = VERSION.findall(project)[0]
    repository = re.findall(r'^Repository = "(.+)"$', project, flags=re.M)
    named = re.sub(r"^site_name: (\w+).*$", rf"site_name: \1 {version}", config, flags=re.M)
    return named + "".join(f"repo_url: {address}\n" for address in repository)


def build(site: Path, url: str | None = None, choice: bool = False) -> str:
    """Build strictly; returns what Zensical said. What the folder holds is replaced, so it must be an earlier site.

    With ``choice`` the header has a menu of the versions that ``../versions.json`` names.
    """
    missing = [name for name in ("zensical", "mkdocstrings", "jupytext") if find_spec(name) is None]
    if missing:
        raise SystemExit(f"the site needs {', '.join(missing)}: pip install '.[docs]'")
    if site.exists() and not (site.is_dir() and (not any(site.iterdir()) or (site / "404.html").is_file())):
        raise SystemExit(f"{site} exists and is no earlier site; give a new folder")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        lay_out(work / "pages")
        shutil.copytree(ROOT / "website" / "theme", work / "website" / "theme")
        config = header(*((ROOT / name).read_text(encoding="utf-8") for name in ("mkdocs.yml", "pyproject.toml")))
        if choice:  # in the form of the tool mike, which the theme knows
            config = re.sub(r"^extra:$", "extra:\n  version: {provider: mike}", config, flags=re.M)
        (work / "mkdocs.yml").write_text(f"{config}site_url: {url or ''}\n", encoding="utf-8")
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


def build_version(sites: Path, url: str | None = None) -> str:
    """Build into a folder of the version's name; the page of ``sites`` itself leads to the newest version."""
    if sites.exists() and not sites.is_dir():
        raise SystemExit(f"{sites} is no folder; give a new one, or that of earlier versions")
    version = VERSION.findall((ROOT / "pyproject.toml").read_text(encoding="utf-8"))[0]
    said = build(sites / version, f"{url}{version}/" if url else None, choice=True)
    names = sorted((page.parent.name for page in sites.glob("[0-9]*/404.html")), key=Version, reverse=True)
    entries = [{"version": name, "title": name, "aliases": ["latest"] * (name == names[0])} for name in names]
    (sites / "versions.json").write_text(json.dumps(entries), encoding="utf-8")
    newest = f'<!doctype html><meta http-equiv="refresh" content="0; url={names[0]}/index.html">\n'
    (sites / "index.html").write_text(newest, encoding="utf-8")
    return said


def a_folder(text: str) -> Path:
    if text.startswith("-"):
        raise argparse.ArgumentTypeError(f"{text} looks like an option; for a folder of that name give ./{text}")
    return Path(text)


def an_address(text: str) -> str:
    if urlsplit(text).scheme not in ("http", "https") or not urlsplit(text).netloc or set(text) & set(" '\"#?"):
        raise argparse.ArgumentTypeError(f"{text} is no address of a site; give one like https://host/name/")
    return text.rstrip("/") + "/"


def options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m website", description="Build the documentation into a folder.")
    parser.add_argument("site", metavar="SITE", type=a_folder, help="a new folder, or an earlier site to replace")
    parser.add_argument(
        "--url",
        type=an_address,
        help="where the site will live, as https://host/name/: for search engines, and for links on the page of a "
        "missing one. Without it the site works in any place",
    )
    parser.add_argument(
        "--versions",
        action="store_true",
        help="SITE holds a site for each version: replace that of this version, and offer all of them in the header",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    given = options(sys.argv[1:])
    print((build_version if given.versions else build)(given.site, given.url))
