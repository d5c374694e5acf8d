"""The documentation site builds without a warning, names everything public, and its pages open without an error.

Every page is looked at on a wide screen and on a narrow one, light and dark. Needs the extra `docs`; the tests that
open pages also need Chromium, and are skipped without it; under REQUIRE_CHROMIUM=1 they fail.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

import hyperopt_ftp as hft
from hyperopt_ftp import plot, schedules
from hyperopt_ftp.integrations import timm, transformers
from website.__main__ import LANDING, REPORTS, ROOT, VERSION, build, build_version, header, options
from website.notebooks import PAGES

nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
playwright = pytest.importorskip("playwright.sync_api")
pytest.importorskip("zensical")
pytest.importorskip("mkdocstrings_handlers.python")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 900}
VIEWS = [(WIDE, "dark"), (NARROW, "light")]

# Run in a page once it has loaded. Pictures further down may be loaded late, so each is waited for.
READ = """async () => {
    const pictures = [...document.images].filter(i => !i.closest("[data-md-component=logo], .md-nav__title"))
    for (const picture of pictures) { picture.loading = "eager"; await picture.decode().catch(() => null) }
    return {
        missing: pictures.filter(i => i.naturalWidth === 0).map(i => i.getAttribute("src")),
        alone: pictures.filter(i => i.closest("a")?.href !== i.src).map(i => i.getAttribute("src")),
        figures: pictures.length,
        links: [...document.querySelectorAll("a[href]")].map(a => a.href),
        ids: [...document.querySelectorAll("[id]")].map(e => e.id),
        unstyled: !document.styleSheets.length,
    }
}"""

# Run in each view. The page hears of another colour scheme in the next frame, or one of those after it.
LOOK = """async ([wide, scheme]) => {
    const problems = []
    const page = document.documentElement
    if (page.scrollWidth > page.clientWidth) problems.push("wider than the window")

    const brightness = color => color.match(/[\\d.]+/g).slice(0, 3).reduce((sum, x) => sum + Number(x), 0) / 765
    function asAsked() {
        const { backgroundColor, color } = getComputedStyle(document.body)
        const [behind, letters] = [brightness(backgroundColor), brightness(color)]
        return scheme === "dark" ? behind < 0.3 && letters > 0.7 : behind > 0.7 && letters < 0.3
    }
    for (let frame = 0; frame < 10 && !asAsked(); frame++) await new Promise(requestAnimationFrame)
    if (!asAsked()) problems.push(`not ${scheme}`)

    const overflow = element => getComputedStyle(element).overflowX
    const scrolls = element => ["auto", "scroll"].includes(overflow(element))
    const hides = element => ["hidden", "clip"].includes(overflow(element))
    const inside = element => element.clientWidth && element.scrollWidth > element.clientWidth + 1
    function cutOff(element) {  // its right end cannot be reached by scrolling
        if (inside(element) && hides(element)) return true
        let { left, right } = element.getBoundingClientRect()
        if (inside(element) && !scrolls(element)) right = left + element.scrollWidth
        for (let box = element.parentElement; box && box !== document.body; box = box.parentElement) {
            const edge = box.getBoundingClientRect().right
            if (hides(box) && right > edge + 1) return true
            if (scrolls(box)) right = edge
        }
        return false
    }
    for (const table of document.querySelectorAll("table[data-sentences]"))
        if (!wide && inside(table.closest(".md-typeset__scrollwrap"))) problems.push("sentences that scroll")
    const begin = element => element.textContent.trim().slice(0, 40) || element.getAttribute("src")
    for (const element of document.querySelectorAll("pre, pre > code, table, img")) {
        if (!element.checkVisibility()) continue
        if (cutOff(element)) problems.push(`cut off: ${begin(element)}`)
        else if (wide && element.matches("pre > code") && inside(element))
            problems.push(`long lines: ${begin(element)}`)
    }
    return problems
}"""


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        (pytest.fail if os.environ.get("REQUIRE_CHROMIUM") else pytest.skip)("Chromium is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    site = tmp_path_factory.mktemp("site") / "site"
    return site, build(site)


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport=WIDE, color_scheme="light")
    page.set_default_timeout(60_000)  # a busy machine is no fault of a page
    yield page
    page.context.close()


def pages_of(site: Path) -> list[Path]:
    """All but the page that only a server shows."""
    return [page for page in sorted(site.rglob("*.html")) if page.name != "404.html"]


def look(page, site: Path) -> tuple[list[str], int]:
    """What is wrong with the pages of a folder when they are opened from it, and how many figures they show."""
    problems, figures, ids, links, name = [], 0, {}, [], ""

    def note(what: str) -> None:
        problems.append(f"{name}: {what}")

    page.on("console", lambda message: message.type == "error" and note(f"console: {message.text}"))
    page.on("pageerror", lambda error: note(f"error: {error}"))
    page.on("request", lambda request: request.url.startswith("http") and note(f"fetches {request.url}"))
    for path in pages_of(site):
        name = path.relative_to(site).as_posix()
        page.goto(path.as_uri())
        found = page.evaluate(READ)
        for figure in found["missing"]:
            note(f"missing figure {figure}")
        for figure in found["alone"]:
            note(f"no link to the full size of {figure}")
        if found["unstyled"]:
            note("unstyled")
        figures += found["figures"]
        ids[path] = set(found["ids"])
        links += [(name, link) for link in found["links"] if link.startswith("file:")]
        for size, scheme in VIEWS:
            page.set_viewport_size(size)
            page.emulate_media(color_scheme=scheme)
            for what in page.evaluate(LOOK, [size is WIDE, scheme]):
                note(f"{size['width']} pixels, {scheme}: {what}")
    for page_name, link in links:
        url, fragment = urldefrag(link)
        target = Path(unquote(url.removeprefix("file://")))
        if not target.is_file() or (fragment and target in ids and unquote(fragment) not in ids[target]):
            problems.append(f"{page_name}: broken link {link.removeprefix(site.as_uri())}")
    return problems, figures


def test_the_build_has_nothing_to_say(built):
    _, said = built
    assert "No issues found" in said
    assert not re.search("warning|error|griffe", said, flags=re.I), said


def test_only_an_earlier_site_is_replaced(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(SystemExit, match="exists and is no earlier site; give a new folder"):
        build(tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_versions_stand_side_by_side_and_the_header_offers_them(built, page, tmp_path):
    (own,) = VERSION.findall((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    with pytest.raises(SystemExit, match="is no folder; give a new one"):
        build_version(Path(__file__))
    for earlier in ("0.0.2", "0.0.10", "notes"):
        (tmp_path / earlier).mkdir()
        (tmp_path / earlier / "404.html").touch()
        (tmp_path / earlier / "index.html").write_text("earlier")
    assert "No issues found" in build_version(tmp_path, "https://host/name/")
    page_of = (tmp_path / own / "docs" / "recipes.html").read_text(encoding="utf-8")
    assert f'<link rel="canonical" href="https://host/name/{own}/docs/recipes.html">' in page_of
    missing = (tmp_path / own / "404.html").read_text(encoding="utf-8")
    assert f'<base href="https://host/name/{own}/">' in missing
    with served(tmp_path, built[0] / "404.html") as address:
        page.goto(address)
        page.wait_for_url(f"{address}/{own}/index.html")
        page.hover(".md-version__current", force=True)  # the menu opens over it
        assert page.locator(".md-version__link").all_inner_texts() == [own, "0.0.10", "0.0.2"]
        page.click(".md-version__link >> text=0.0.10")
        page.wait_for_url(f"{address}/0.0.10/**")


@pytest.mark.parametrize("name", PAGES)
def test_a_page_offers_itself_as_a_notebook_that_runs(name, built):
    page, notebook = ((built[0] / name).with_suffix(end) for end in (".html", ".ipynb"))
    assert f'href="{notebook.name}"' in page.read_text(encoding="utf-8")
    cells = nbformat.read(notebook, as_version=4)
    prose = "".join(cell.source for cell in cells.cells if cell.cell_type == "markdown")
    assert not re.search(r"\]\((?!https?:)", prose)  # a notebook that was downloaded has no pages beside it
    code = [cell.source.strip() for cell in cells.cells if cell.cell_type == "code"]
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), flags=re.S)
    assert code == [block.strip() for block in blocks]  # which test_docs.py runs
    if name == PAGES[0]:
        nbclient.NotebookClient(cells, timeout=300, resources={"metadata": {"path": ROOT}}).execute()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--site"], "the following arguments are required: SITE"),
        (["--", "--site"], "--site looks like an option; for a folder of that name give ./--site"),
        (["site", "--url", "host/name"], "host/name is no address of a site; give one like https://host/name/"),
    ],
)
def test_wrong_arguments_are_refused(arguments, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        options(arguments)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_an_address_ends_with_a_slash():
    assert options(["site", "--url", "https://host/name"]).url == "https://host/name/"
    assert options(["site"]).url is None


def test_every_page_opens_without_an_error(built, page):
    assert 'id="you-fine-tune-a-pre-trained-model"' in (built[0] / "index.html").read_text(encoding="utf-8")  # landing
    assert "<table data-sentences" in (built[0] / "docs" / "reference" / "errors.html").read_text(encoding="utf-8")
    problems, figures = look(page, built[0])
    assert problems == []
    assert figures >= len(list((ROOT / "docs").rglob("*.png")))  # each is shown
    assert len(pages_of(built[0])) > 30


def test_every_public_name_is_in_the_reference(built):
    reference = "".join(page.read_text(encoding="utf-8") for page in (built[0] / "docs" / "reference").glob("*.html"))
    entries = dict(re.findall(r'<h2 id="hyperopt_ftp\.([\w.]+)"(.*?)(?=<h2|</article)', reference, flags=re.S))
    modules = (plot, schedules, timm, transformers)
    public = [name for name in vars(hft) if not name.startswith("_") and callable(getattr(hft, name))]
    public += [f"{m.__name__.removeprefix('hyperopt_ftp.')}.{name}" for m in modules for name in m.__all__]
    building = (ROOT / "docs" / "reference" / "building.md").read_text(encoding="utf-8")
    public += re.findall(r"^::: hyperopt_ftp\.(\S+)$", building, flags=re.M)  # a module of that name has no signature
    assert len(public) >= 40
    assert [name for name in public if 'class="language-python' not in entries.get(name, "")] == []
    assert "&gt;&gt;&gt;" not in reference  # what is copied runs
    assert "=====" not in reference  # a table that was none


def test_every_page_but_reports_is_in_the_navigation():
    navigation = re.findall(r"^ +- .*: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.M)
    pages = {page.relative_to(ROOT).as_posix() for page in (ROOT / "docs").rglob("*.md")} - {LANDING.as_posix()}
    reports = {page.relative_to(ROOT).as_posix() for page in ROOT.glob(REPORTS)}
    assert "index.md" in navigation
    assert pages - reports == {page for page in navigation if page.startswith("docs/")}


def test_every_report_is_in_the_list_of_studies_leads_back_and_is_not_searched(built):
    reports = sorted(page.relative_to(ROOT / "docs" / "studies").as_posix() for page in ROOT.glob(REPORTS))
    studies = built[0] / "docs" / "studies"
    listed = (studies / "index.html").read_text(encoding="utf-8")
    assert len(reports) > 10
    assert [report for report in reports if f'href="{report.replace(".md", ".html")}"' not in listed] == []
    assert '<a href="../index.html">all studies</a>' in (studies / reports[0].replace(".md", ".html")).read_text()
    assert "/report.html" not in (built[0] / "search.json").read_text(encoding="utf-8")  # pages that explain are found


def test_the_header_has_the_version_and_the_repository():
    config, project = "site_name: hyperopt_ftp  # why\nnav: []\n", 'version = "1.2"\n'
    assert header(config, project) == "site_name: hyperopt_ftp 1.2\nnav: []\n"
    assert header(config, project + 'Repository = "https://host/name"\n').endswith("repo_url: https://host/name\n")


@pytest.mark.parametrize(
    ("words", "target"), [("MAML", "docs/recipes.html"), ("mixed precision", "docs/gotchas.html#mixed-precision")]
)
def test_the_search_finds_without_a_server(words, target, built, page):
    page.goto((built[0] / "index.html").as_uri())
    page.keyboard.press("/")
    page.keyboard.type(words)
    among_three = ", ".join(f"[aria-posinset='{place}']" for place in (1, 2, 3))
    page.wait_for_selector(f"[role=option][href*='{target}']:is({among_three}):visible")


def test_the_first_column_of_a_wide_table_stays_on_a_phone(built, page):
    page.set_viewport_size(NARROW)
    page.goto((built[0] / "docs" / "studies" / "family" / "report.html").as_uri())
    page.wait_for_selector(".md-typeset__scrollwrap table")
    frame, first, second = page.evaluate(
        """() => {
            const table = document.querySelector(".md-typeset__scrollwrap")
            table.scrollLeft = 100
            return [table, ...table.querySelectorAll("td")].slice(0, 3).map(e => e.getBoundingClientRect().left)
        }"""
    )
    assert first == frame  # at its left edge
    assert second < first + 100  # below the first


@contextmanager
def served(folder: Path, missing: Path):
    """The address of a server that shows the page ``missing`` for what is not in the folder."""

    class Handler(SimpleHTTPRequestHandler):
        def send_error(self, code, message=None, explain=None):
            self.send_response(code)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(missing.read_bytes())

        def log_message(self, format, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_missing_page_leads_back_wherever_the_site_lives(built, page, tmp_path):
    (tmp_path / "name").symlink_to(built[0], target_is_directory=True)
    with served(tmp_path, built[0] / "404.html") as address:
        for place in (f"{address}/name/none.html", f"{address}/name/docs/studies/none/of/these/"):
            assert page.goto(place).status == 404
            assert page.evaluate("() => getComputedStyle(document.body).fontFamily").startswith("system-ui")
            page.wait_for_selector(f"base[href='{address}/name/']", state="attached")
            found = [page.request.get(link.evaluate("a => a.href")).status for link in page.locator("a").all()]
            assert len(found) > 3
            assert set(found) == {200}
            page.click("text=hyperopt_ftp")
            page.wait_for_url(f"{address}/name/index.html")


GOOD = """<!doctype html><title>a</title>
<style>
  body { background: white; color: black }
  @media (prefers-color-scheme: dark) { body { background: black; color: white } }
</style>
"""


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ('<a href="none.png"><img src="none.png"></a>', "missing figure none.png"),
        ('<img src="none.png">', "no link to the full size of none.png"),
        ('<a href="other.html#none">a</a>', "broken link /other.html#none"),
        ("<script>none()</script>", "error: none is not defined"),
        ('<script src="http://127.0.0.1:9/a.js"></script>', "fetches http://127.0.0.1:9/a.js"),
        ('<link rel="stylesheet" href="none.css">', "console: Failed to load resource: net::ERR_FILE_NOT_FOUND"),
        ("<script>document.querySelector('style').remove()</script>", "unstyled"),
        ('<div style="width: 600px">a</div>', "390 pixels, light: wider than the window"),
        ("<style>body { background: white; color: black !important }</style>", "1280 pixels, dark: not dark"),
        (
            f'<div style="overflow: hidden"><pre><code>{"a" * 99}</code></pre></div>',
            f"390 pixels, light: cut off: {'a' * 40}",
        ),
        (
            f'<div style="overflow: clip"><table><tr><td>{"a" * 99}</table></div>',
            f"390 pixels, light: cut off: {'a' * 40}",
        ),
        (
            f'<pre><code style="display: block; overflow: auto">{"a" * 999}</code></pre>',
            f"1280 pixels, dark: long lines: {'a' * 40}",
        ),
    ],
)
def test_what_is_broken_is_seen(body, problem, page, tmp_path):
    (tmp_path / "index.html").write_text(GOOD + body)
    (tmp_path / "other.html").write_text(GOOD + '<a href="index.html">a</a>')
    problems, _ = look(page, tmp_path)
    assert f"index.html: {problem}" in problems
    assert [other for other in problems if not other.startswith("index.html")] == []


def test_what_can_be_scrolled_to_is_not_cut_off(page, tmp_path):
    code = f'<pre><code style="display: block; overflow: auto">{"a" * 99}</code></pre>'
    table = f'<div style="overflow: auto"><table><tr><td>{"a" * 199}</table></div>'
    (tmp_path / "index.html").write_text(f'{GOOD}<div style="overflow: hidden">{code}{table}</div>')
    assert look(page, tmp_path)[0] == []
