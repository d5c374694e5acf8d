"""The code of README and of the pages runs, and what they say is true."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import hyperopt_ftp as hft

from .support.family import FAMILY, Method

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
STUDIES = ROOT / "docs" / "studies"  # reports of runs
PAGES = [
    ROOT / "README.md",
    *sorted(page for page in (ROOT / "docs").rglob("*.md") if not page.is_relative_to(STUDIES)),
]
BLOCKS = [
    pytest.param(page.name, code, id=f"{page.relative_to(ROOT)}-{i}")
    for page in PAGES
    for i, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.S))
]


@pytest.mark.parametrize(("page", "code"), BLOCKS)
def test_code_blocks_run(page, code, capsys):
    exec(compile(code, page, "exec"), {})


PRINTS = [
    pytest.param(code, shown, id=f"{page.relative_to(ROOT)}-{i}")
    for page in PAGES
    for i, (code, shown) in enumerate(
        re.findall(
            r"```python\n((?:(?!```).)*)```\n\n[^\n`]*\b[Ii]t prints\n\n```text\n(.*?)```", page.read_text(), flags=re.S
        )
    )
]


@pytest.mark.parametrize(("code", "shown"), PRINTS)
def test_code_prints_what_the_page_shows(code, shown, capsys):
    exec(compile(code, "page", "exec"), {})
    printed, number = capsys.readouterr().out, r"\d+\.(\d+)"
    assert re.sub(number, "#", printed) == re.sub(number, "#", shown)
    for now, then in zip(re.finditer(number, printed), re.finditer(number, shown), strict=True):
        last = 10.0 ** -len(then[1])  # another machine may round the other way
        assert float(now[0]) == pytest.approx(float(then[0]), abs=1.5 * last)


def test_pages_show_what_is_printed():
    """The quick starts, what a radius_lr does, what a hypergradient costs."""
    pages = {str(block.id).rpartition("-")[0] for block in PRINTS}
    assert pages >= {"README.md", "docs/quick-start.md", "docs/concepts/ftp.md", "docs/concepts/cost.md"}


BY_HAND = [page for page in PAGES if page.parent.name in ("docs", "concepts")]
GENERATED = {"errors.md", "bases.md"}
OTHERS = {"index.md", "licences.md"}  # the landing page, a list


@pytest.mark.parametrize(
    "page", [page for page in BY_HAND if page.name not in GENERATED | OTHERS], ids=lambda page: page.name
)
def test_a_page_says_for_whom_it_is_and_where_to_go(page):
    text = page.read_text().strip()
    assert re.match(r"# .+\n\nFor [^\n]*\b(those|researchers|users|everybody|contributors|maintainers)\b", text)
    assert re.match(r"Next: .*\]\(", text.splitlines()[-1])


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
    for document in (
        *PAGES,
        *sorted((ROOT / "experiments").rglob("*.md")),
        *sorted(STUDIES.rglob("*.md")),
    ):
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


def test_contributing_names_what_ci_runs():
    in_ci, said = (
        re.findall(r"^make ([\w -]+\w)", (ROOT / page).read_text(), flags=re.M)[0]
        for page in (".ci/run", "CONTRIBUTING.md")
    )
    assert said == in_ci


def test_names_of_commands_exist():
    makefile = (ROOT / "Makefile").read_text()
    for command in set(re.findall(r"`?make (\w+)", README)):
        assert re.search(rf"^{command}:", makefile, flags=re.M), command


MEASURED = ("README.md", "docs/results.md", "docs/performance.md")


def test_what_is_shown_is_measured():
    """Figures lie with the runs that made them."""
    shown = [
        (ROOT / page).parent / target
        for page in MEASURED
        for target in re.findall(r"!\[[^]]*\]\(([^)]+)\)", (ROOT / page).read_text())
    ]
    assert len(shown) >= 3
    places = (STUDIES, ROOT / "benchmarks" / "results")
    assert [figure for figure in shown if not any(figure.resolve().is_relative_to(place) for place in places)] == []


def test_what_the_readme_says_of_learning_rates_is_in_the_studies():
    table = README.partition("| task, pre-trained on |")[2].partition("\n\n")[0]
    studies = re.findall(r"docs/studies/(sensitivity-\w+)/report\.md", table)
    assert len(studies) == 6
    for study, shown in zip(studies, rows("| task, pre-trained on |" + table)[1:], strict=True):
        found = [row for row in rows((STUDIES / study / "report.md").read_text()) if len(row) == 11]
        adamw, *others = (
            next(dict(zip(found[0], row, strict=True)) for row in found if row[0] == method)
            for method in ("AdamW", "FTPAdamW", "WiSE-FT")
        )
        minus = [f"{row['minus AdamW, ID']} / {row['minus AdamW, OOD']}".replace(" ± ", "±") for row in others]
        rates = [row["good rates"].replace(" to ", "\u2013") for row in (adamw, others[0])]
        assert shown[1:] == [*rates, *minus], study


def test_what_the_results_say_of_ftp_is_in_the_studies():
    table = (ROOT / "docs/results.md").read_text().partition("| task, anchor |")[2].partition("\n\n")[0]
    studies = re.findall(r"studies/(sensitivity-\w+)/report\.md", table)
    assert len(studies) == 6
    for study, shown in zip(studies, rows("| task, anchor |" + table)[1:], strict=True):
        found = {row[0]: row for row in rows((STUDIES / study / "report.md").read_text()) if len(row) == 11}
        adamw, ftp = found["AdamW"], found["FTPAdamW"]
        assert shown[1:] == [adamw[2], *ftp[3:7], adamw[-1], ftp[-1]], study


def measured(benchmark: str) -> dict:
    return json.loads((ROOT / "benchmarks" / "results" / f"{benchmark}.json").read_text())


def test_small_problems_are_those_that_were_measured():
    text = (ROOT / "docs" / "performance.md").read_text()
    table = rows("| MAML, K" + text.partition("| MAML, K")[2].partition("\n\n")[0])
    found = measured("small")["problems"]
    assert table == [list(found), [f"{x['ratio']:.1f}" for x in found.values()]]


def test_the_time_of_a_training_step_in_the_readme_is_measured():
    steps = [model["steps"] for model in measured("training_cpu")["models"].values()]
    ratios = [found["FTPAdamW (fused)"]["ratio"] for found in steps]
    assert f"takes [{min(ratios):.2f} to {max(ratios):.2f} times as long as AdamW's]" in README
    assert all(1.9 <= found["TPGM"]["ratio"] / ratio <= 2.2 for found, ratio in zip(steps, ratios, strict=True))


def test_the_speeds_on_the_page_of_performance_are_measured():
    page = (ROOT / "docs" / "performance.md").read_text()
    table = {row[0]: [cell.partition(" ")[0] for cell in row[1:]] for row in rows(page)}
    for row, name in {
        "`FTPAdamW(fused=True)`": "FTPAdamW (fused)",
        "`FTPAdamW(foreach=True)`": "FTPAdamW (foreach)",
        "`FTP(AdamW(fused=True))`": "FTP around AdamW",
        "`MARSSP`": "MARS-SP",
        "`L2SP`": "L2-SP",
        "`SPD`": "SPD",
        "TPGM": "TPGM",
    }.items():  # of two tables with this row the later one
        steps = [model["steps"] for model in measured("training_cpu")["models"].values()]
        assert table[row] == [f"{found[name]['ratio']:.2f}" for found in steps], row
    first = {row[0]: row[1:] for row in reversed(rows(page))}
    models = measured("step_cpu")["models"].values()
    fused = [f"{model['steps']['FTPAdamW(fused)']['ratio_to_adamw_fused']:.2f}" for model in models]
    assert first["`FTPAdamW(fused=True)`"] == fused
    said = " ".join(page.split())
    unrolled = hypergradient_ratios("Unroll()", "mlp", "transformer", "conv16", "conv64", "maml", "l2")
    assert f"`Unroll()` takes {unrolled} times TorchOpt's time, row by row" in said
    compiled = hypergradient_ratios("Unroll(compile=True)", "mlp", "transformer", "conv16", "maml", "l2")
    assert f"it takes {compiled} times TorchOpt's time" in said


def hypergradient_ratios(ours: str, *problems: str) -> str:
    """Against TorchOpt's faster form where there are two."""
    ratios = [
        found[ours]["median_seconds"]
        / min(run["median_seconds"] for name, run in found.items() if name.startswith("torchopt"))
        for found in (measured("hypergradient")["problems"][problem]["contenders"] for problem in problems)
    ]
    *others, last = (f"{ratio:.2f}" for ratio in ratios)
    return f"{', '.join(others)} and {last}"


def rows(text: str) -> list[list[str]]:
    """Cells of the tables of a page, without emphasis."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip().strip("*") for cell in line.strip("|").split("|")] for line in lines]


def test_tables_of_studies_are_those_of_the_reports():
    """Below a line that names a report of docs/studies, up to the next heading, every row is one of its rows."""
    parts = re.split(r"studies/([\w-]+)/report\.md", (ROOT / "experiments/classification/README.md").read_text())
    checked = 0
    for study, text in zip(parts[1::2], parts[2::2], strict=True):
        report: dict[str, list[str]] = {}
        for row in rows((ROOT / "docs/studies" / study / "report.md").read_text()):
            report.setdefault(row[0], row)  # that of the first table, which has the results
        for row in rows(text.partition("\n#")[0].partition("<!-- end -->")[0]):
            if row[0] in report:
                missing = [cell for cell in row if cell not in report[row[0]]]
                assert not missing, f"{study}, {row[0]}: {missing}"
                checked += 1
    assert checked >= 6


def test_numbers_beside_a_report_are_in_it():
    """In docs/when.md a section that links reports has its percentages, and numbers with a point, from them."""
    checked = 0
    for section in (ROOT / "docs" / "when.md").read_text().split("\n## ")[1:]:
        reports = re.findall(r"\]\(studies/([\w-]+)/report\.md\)", section)
        if reports:
            text = "\n".join((STUDIES / study / "report.md").read_text() for study in reports)
            known = set(re.findall(r"\d+(?:\.\d+)?", text))
            plain = re.sub(r"\]\([^)]*\)", "]", section)
            numbers = re.findall(r"\d+\.\d+|\d+(?= %)", plain)
            assert [number for number in numbers if number not in known] == [], section
            checked += len(numbers)
    assert checked > 10
