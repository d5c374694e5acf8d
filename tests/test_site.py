"""The documentation site builds without a warning, names everything public, and its pages open without an error.

Needs the extra `docs` and Chromium: without them the tests are skipped, so look at what `make docs` says.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

import hyperopt_ftp as hft
from hyperopt_ftp import plot, schedules
from hyperopt_ftp.integrations import timm, transformers
from website.__main__ import ROOT, build

playwright = pytest.importorskip("playwright.sync_api")
pytest.importorskip("zensical")
pytest.importorskip("mkdocstrings_handlers.python")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

# Run in a page once it has loaded. Pictures further down may be loaded late, so each is waited for.
LOOK = """async () => {
    for (const picture of document.images) { picture.loading = "eager"; await picture.decode().catch(() => null) }
    return {
        missing: [...document.images].filter(i => i.naturalWidth === 0).map(i => i.getAttribute("src")),
        figures: document.images.length,
        links: [...document.querySelectorAll("a[href]")].map(a => a.href),
        ids: [...document.querySelectorAll("[id]")].map(e => e.id),
        overflow: document.documentElement.scrollWidth > document.documentElement.clientWidth,
    }
}"""


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    site = tmp_path_factory.mktemp("site") / "site"
    return site, build(site)


def pages_of(site: Path) -> list[Path]:
    """All but the page that only a server shows."""
    return [page for page in sorted(site.rglob("*.html")) if page.name != "404.html"]


def look(browser, site: Path) -> tuple[list[str], int]:
    """What is wrong with the pages of a folder when they are opened from it, and how many figures they show."""
    problems, figures, ids, links = [], 0, {}, []
    for path in pages_of(site):
        name, page = path.relative_to(site).as_posix(), browser.new_page()

        def note(what: str, name: str = name) -> None:
            problems.append(f"{name}: {what}")

        page.on("console", lambda message, note=note: message.type == "error" and note(f"console: {message.text}"))
        page.on("pageerror", lambda error, note=note: note(f"error: {error}"))
        page.on("request", lambda request, note=note: request.url.startswith("http") and note(f"fetches {request.url}"))
        page.goto(path.as_uri())
        found = page.evaluate(LOOK)
        page.close()
        for figure in found["missing"]:
            note(f"missing figure {figure}")
        if found["overflow"]:
            note("wider than the window")
        figures += found["figures"]
        ids[path] = set(found["ids"])
        links += [(name, link) for link in found["links"] if link.startswith("file:")]
    for name, link in links:
        url, fragment = urldefrag(link)
        target = Path(unquote(url.removeprefix("file://")))
        if not target.is_file() or (fragment and target in ids and unquote(fragment) not in ids[target]):
            problems.append(f"{name}: broken link {link.removeprefix(site.as_uri())}")
    return problems, figures


def test_the_build_has_nothing_to_say(built):
    _, said = built
    assert "No issues found" in said
    assert not re.search("warning|error|griffe", said, flags=re.I), said


def test_only_an_earlier_site_is_replaced(built, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(SystemExit, match="exists and is no earlier site; give a new folder"):
        build(tmp_path)
    assert (tmp_path / "thesis.tex").exists()
    assert "No issues found" in build(built[0])


def test_every_page_opens_without_an_error(built, browser):
    problems, figures = look(browser, built[0])
    assert problems == []
    assert figures > 50
    assert len(pages_of(built[0])) > 30


def test_every_public_name_is_in_the_reference(built):
    reference = "".join(page.read_text(encoding="utf-8") for page in (built[0] / "docs" / "reference").glob("*.html"))
    entries = dict(re.findall(r'<h2 id="hyperopt_ftp\.([\w.]+)"(.*?)(?=<h2|</article)', reference, flags=re.S))
    public = [name for name in vars(hft) if not name.startswith("_") and callable(getattr(hft, name))]
    assert len(public) >= 25
    assert [name for name in public if "&gt;&gt;&gt;" not in entries.get(name, "")] == []
    modules = (plot, schedules, timm, transformers)
    others = {f"{m.__name__.removeprefix('hyperopt_ftp.')}.{name}" for m in modules for name in m.__all__}
    assert len(others) >= 9
    assert others - entries.keys() == set()


def test_every_page_is_in_the_navigation(built):
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = list((ROOT / "docs").rglob("*.md"))
    assert [page for page in pages if str(page.relative_to(ROOT)) not in navigation] == []


def test_every_figure_is_in_the_gallery():
    gallery = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    figures = [figure.relative_to(ROOT / "docs") for figure in (ROOT / "docs").rglob("*.png")]
    assert len(figures) > 20
    assert [figure for figure in figures if f"]({figure.as_posix()})" not in gallery] == []


def test_the_search_finds_without_a_server(built, browser):
    page = browser.new_page()
    page.goto((built[0] / "index.html").as_uri())
    page.keyboard.press("/")
    page.keyboard.type("hypergradient")
    page.wait_for_selector("a[href*='hypergradients.html']:visible")
    page.close()


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ('<img src="none.png">', "index.html: missing figure none.png"),
        ('<a href="none.html">a</a>', "index.html: broken link /none.html"),
        ('<a href="other.html#none">a</a>', "index.html: broken link /other.html#none"),
        ("<script>none()</script>", "index.html: error: none is not defined"),
        ("<script>console.error('no')</script>", "index.html: console: no"),
        ('<script src="http://127.0.0.1:9/a.js"></script>', "index.html: fetches http://127.0.0.1:9/a.js"),
        ('<div style="width: 9999px">a</div>', "index.html: wider than the window"),
    ],
)
def test_what_is_broken_is_seen(body, problem, browser, tmp_path):
    (tmp_path / "index.html").write_text(f"<!doctype html><title>a</title>{body}")
    (tmp_path / "other.html").write_text('<!doctype html><title>b</title><a href="index.html">a</a>')
    assert problem in look(browser, tmp_path)[0]
