"""Numbers of README and of the pages are those of reports, measurements and tables."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator

import pytest
from scipy.stats import spearmanr

from benchmarks import bench_estimate, bench_meta, bench_triton
from benchmarks.hypergradient import across
from benchmarks.large.processes import peaks, table
from experiments.common.estimate import interval
from experiments.sensitivity import tuning
from hyperopt_ftp.testing import CHECKS

from .support.pages import README, ROOT, STUDIES, rows


def report(study: str) -> str:
    return (STUDIES / study / "report.md").read_text()


@pytest.mark.parametrize(
    ("page", "least"), [("docs/when.md", 40), ("docs/stories.md", 30), ("experiments/classification/README.md", 80)]
)
def test_numbers_beside_a_report_are_in_it(page, least):
    """A section that links reports, or shows what is printed, has its percentages and decimals from there."""
    checked = 0
    for section in re.split(r"\n#+ ", (ROOT / page).read_text()):
        studies = re.findall(r"studies/([\w-]+)/report\.md\)", section)
        printed = re.findall(r"```.*?```", section, flags=re.S)
        if studies or any(block.startswith("```text") for block in printed):
            source = "".join([*map(report, studies), *printed])
            known = {number for x in re.findall(r"[+-]?\d+(?:\.\d+)?", source) for number in (x, x.lstrip("+-"))}
            plain = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)", "", section, flags=re.S)
            numbers = re.findall(r"[+-]?\d+\.\d+|\d+(?= %)", plain)
            assert [number for number in numbers if number not in known] == [], section
            checked += len(numbers)
    assert checked >= least


def tight(text: str) -> str:
    """Numbers with their intervals as pages write them, where words are counted."""
    return text.replace(" ± ", "±")


def test_the_table_of_the_studies_of_rates_is_that_of_the_reports():
    page = "docs/results.md"
    first = "| task, pre-trained on |"
    table = first + (ROOT / page).read_text().partition(first)[2].partition("\n\n")[0]
    studies = re.findall(r"studies/(sensitivity-[\w-]+)/report\.md", table)
    assert sorted(studies) == sorted(folder.name for folder in STUDIES.glob("sensitivity-*"))
    for study, shown in zip(studies, rows(table)[1:], strict=True):
        of = {row[0]: row for row in rows(report(study)) if len(row) == 11 and "±" in row[3]}
        ranges = [of[method][-1].replace(" to ", "\u2013") for method in ("AdamW", "FTPAdamW")]
        both = [f"{wider(of[method], 3)} / {wider(of[method], 6)}" for method in ("FTPAdamW", "WiSE-FT")]
        assert shown[1:] == [*ranges, *both], study
        assert "(edge)" not in report(study), f"{study}: a rate at an end of its grid"


def test_scores_at_one_rate_for_all_studies_are_those_of_the_report():
    first = "| rate | AdamW | worst | FTP | worst |"
    said, made = (
        rows(first + text.partition(first)[2].partition("\n\n")[0])
        for text in ((ROOT / "docs" / "results.md").read_text(), report("tuning"))
    )
    assert len(said) == 6
    assert said == made
    of = {row[0]: row for row in rows(report("tuning"))}  # one minus the other, up to three roundings
    for left, own, plain in zip(
        *(re.findall(r"[+-]\d+\.\d", x) for x in (of["0.0002 in all"][1], of["0.0006"][3], of["0.0002"][1])),
        strict=True,
    ):
        assert abs(float(left) - (float(own) - float(plain))) <= 0.15 + 1e-9


def test_the_figure_of_tolerance_draws_the_means_of_the_report():
    content = json.loads((STUDIES / "sensitivity-scenes" / "metrics.json").read_text())
    header, *table = rows(report("sensitivity-scenes").partition("Means by learning rate")[2])
    cells = {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in table}
    for method, name in (("adamw", "AdamW"), ("ftp", "FTPAdamW")):
        for place, which in enumerate(("id", "ood")):
            line = tuning.minus_best(content, method, which)
            best = sum(content["summary"]["adamw"][which]) / 5
            shown = {float(lr): float(cell.split(" / ")[place]) for lr, cell in cells[name].items() if cell}
            assert line.keys() == shown.keys()
            assert all(abs(line[lr] + best - shown[lr]) <= 0.05 + 1e-9 for lr in line)  # a rounding


def test_gains_of_a_faster_radius_do_not_follow_the_number_of_steps():
    """As docs/concepts/ftp.md says; batches are of 32 pictures or 16 texts."""
    found, gains, steps_of = json.loads((STUDIES / "tuning" / "metrics.json").read_text())["radii"], {}, []
    for name, own in found.items():
        record = json.loads((STUDIES / f"radius-{name}" / "metrics.json").read_text())
        data, anchor = record["data"], record["config"]["anchor"]
        examples, batch = (data["pictures"], 32) if "pictures" in data else (data["tweets"], 16)
        epochs = {"styles": 5, "imagenet": 5, "cells": 8}.get(anchor, 2)
        steps_of.append(math.ceil(examples["finetune"] / batch) * epochs)
        for lr, which in ((lr, which) for lr in ("0.0006", "0.002") for which in (0, 1)):
            fast, usual = (own[f"lr {lr}, radius_lr {rate}"][which] for rate in ("0.1", "0.01"))
            gains.setdefault((lr, which), []).append(fast - usual)
    together = [spearmanr(steps_of, each)[0] for each in gains.values()]
    words = one_line((ROOT / "docs" / "concepts" / "ftp.md").read_text())
    assert f"{min(steps_of)} to {max(steps_of)} steps, n = {len(steps_of)}:" in words
    assert f"are between {min(together):.2f} and {max(together):.2f})" in words


def test_what_ftp_gains_from_minilm_is_the_mean_of_the_reports():
    """With the wider of two intervals: by Student's t over the studies, and by those of the studies."""
    gains = []
    for study in ("minilm", "opinions", "opinions-newspapers", "opinions-products", "opinions-tweets"):
        row = next(row for row in rows(report(f"sensitivity-{study}")) if row[0] == "FTPAdamW" and len(row) == 11)
        gains.append([[float(x) for x in wider(row, at).split("±")] for at in (3, 6)])
    said = []
    for own in zip(*gains, strict=True):
        means, halves = zip(*own, strict=True)
        middle, half = interval(list(means))
        said.append(f"{middle:+.1f} ± {max(half or 0.0, math.hypot(*halves) / len(halves)):.1f}")
    assert said[0] in (ROOT / "docs" / "choosing.md").read_text()


def test_every_number_with_an_interval_is_in_the_report_beside_it():
    """Of a paragraph, a list entry or a row of a table: in a report that it links, or else in that of one rate against
    a tuned one; or the wider of two intervals there. The table of the studies has a test of its own."""
    page = (ROOT / "docs" / "results.md").read_text()
    table = page.partition("| task, pre-trained on |")[2].partition("\n\n")[0]
    checked = 0
    when = (ROOT / "docs" / "when.md").read_text().partition("## Differentiate or search")[0]
    for text in (page.replace(table, ""), README, when):
        for part in re.split(r"\n\n|\n(?=[-|])", text):
            linked = [*re.findall(r"studies/([\w-]+)/report\.md\)", part), "tuning"]
            widest = [
                wider(row, at)
                for of in linked
                for row in rows(report(of))
                for at in (3, 6)
                if len(row) == 11 and "±" in row[at]
            ]
            source = tight("".join([*map(report, linked), *widest]))
            said = re.findall(r"[+-]?\d+\.\d±\d+\.\d", tight(part))
            assert [pair for pair in said if pair not in source] == [], part
            checked += len(said)
    assert checked >= 40


def wider(row: list[str], at: int) -> str:
    """A mean with the wider of its two intervals."""
    middle, by_split = row[at].split(" ± ")
    return f"{middle}±{max(by_split, row[at + 1].removeprefix('± '), key=float)}"


def measured(benchmark: str) -> dict:
    return json.loads((ROOT / "benchmarks" / "results" / f"{benchmark}.json").read_text())


def small_problems() -> Iterator[str]:
    found = measured("small")["problems"]
    yield f"| {' | '.join(found)} |"
    yield " | ".join(f"{x['ratio']:.1f}" for x in found.values())


def steps(name: str) -> list[float]:
    """Relative to AdamW(fused=True), of each model."""
    return [model["steps"][name]["ratio_to_adamw_fused"] for model in measured("step_cpu")["models"].values()]


def step() -> Iterator[str]:
    for row, name in {
        "`FTPAdamW(fused=True)`": "FTPAdamW(fused)",
        "the same with `lean=True`": "FTPAdamW(fused), lean",
        "`FTPSGD(momentum=0.9, fused=True)`": "FTPSGD(fused)",
        "`FTP(AdamW(fused=True))`": "FTP(AdamW(fused))",
        "`FTPAdamW(foreach=True)`": "FTPAdamW(foreach)",
        "`AdamW(foreach=True)`": "AdamW(foreach)",
        "`FTPAdamW(foreach=False)`, the pure functions": "FTPAdamW(single)",
        "the rule as a plain loop over tensors": "plain loop",
    }.items():
        yield f"| {row} | {' | '.join(f'{ratio:.{1 if ratio >= 10 else 2}f}' for ratio in steps(name))} |"


def family() -> Iterator[str]:
    """A step of each method, and the state that it adds to AdamW's."""
    found = measured("family_cpu")["steps"]
    for row, name in {
        "FTP; `FTPAdamW(fused=True)` [takes less](performance.md#a-step-of-ftp)": "FTP",
        "MARS-SP": "MARSSP",
        "L2-SP": "L2SP",
        "L2-SP, decoupled": "L2SP(decoupled=True)",
        "recall": "Recall",
        "SPD, MAPS": "SPD",
        "cautious decay": "CautiousDecay",
        "DiGraP": "DiGraP",
    }.items():
        more = found[name]["state_bytes_per_weight"] - found["AdamW(fused)"]["state_bytes_per_weight"]
        yield f"| {row} | {found[name]['ratio']:.1f} | {more:.0f} |"


def training_steps(name: str) -> list[float]:
    """Relative to AdamW, of each model."""
    return [model["steps"][name]["ratio"] for model in measured("training_cpu")["models"].values()]


def training_step() -> Iterator[str]:
    for row, name in {
        "`FTPAdamW(fused=True)`": "FTPAdamW (fused)",
        "`FTPAdamW(foreach=True)`": "FTPAdamW (foreach)",
        "`FTP(AdamW(fused=True))`": "FTP around AdamW",
        "`MARSSP`": "MARS-SP",
        "`L2SP`": "L2-SP",
        "`SPD`": "SPD",
        "TPGM": "TPGM",
    }.items():
        yield f"| {row} | {' | '.join(f'{ratio:.2f}' for ratio in training_steps(name))} |"


def span(ratios: Iterable[float]) -> str:
    return f"{min(ratios := list(ratios)):.2f} to {max(ratios):.2f} times"


def training_step_in_readme() -> Iterator[str]:
    yield f"takes [{span(training_steps('FTPAdamW (fused)'))} as long as AdamW's]"


def training_step_in_choosing() -> Iterator[str]:
    of_three = (ratio for name in ("MARS-SP", "L2-SP", "SPD") for ratio in training_steps(name))
    yield f"takes [{span(of_three)} as long as with AdamW]"


def without_numba() -> Iterator[str]:
    """The step that a plain install takes, as a multiple of the fused one."""
    ratios = [a / b for a, b in zip(steps("FTPAdamW(foreach)"), steps("FTPAdamW(fused)"), strict=True)]
    pairs = zip(training_steps("FTPAdamW (foreach)"), training_steps("FTPAdamW (fused)"), strict=True)
    longer = [100 * (foreach / fused - 1) for foreach, fused in pairs]
    yield f"an optimizer step on a CPU takes {min(ratios):.1f} to {max(ratios):.1f} times as long"
    yield f"a whole training step {min(longer):.0f} to {max(longer):.0f} % longer"


def hypergradients() -> Iterator[str]:
    yield across.table(measured("hypergradient")["problems"])
    found = measured("hypergradient-1024")["problems"]["mlp"]["contenders"]
    eager, compiled, jax = (found[name]["median_seconds"] for name in (across.UNROLL, across.COMPILED, "jax"))
    pays = found[across.COMPILED]["first_call_seconds"] / (eager - compiled)
    yield f"take {compiled:.2f} s in place of {eager:.2f} s (JAX {jax:.2f} s)"
    yield f"and compiling pays after {pays:.0f} calls"


def in_short() -> Iterator[str]:
    """The ranges at the top of the page: over the models, over the problems, JAX's over the small ones."""
    yield f"| {span(training_steps('FTPAdamW (fused)'))} the time | AdamW |"
    yield f"| {span(training_steps('TPGM'))} | AdamW |"
    yield f"| {span(steps('FTPAdamW(fused)'))} | AdamW |"
    own, base = (measured("family_cpu")["steps"][name]["state_bytes_per_weight"] for name in ("FTP", "AdamW(fused)"))
    yield f"| {own / base:.0f} times the memory | AdamW |"

    problems = {name: record["contenders"] for name, record in measured("hypergradient")["problems"].items()}

    def against(ours: str, forms: list[str], what: str, names: Iterable[str] = problems) -> list[float]:
        pairs = ((problems[name].get(ours), across.quickest(problems[name], forms)) for name in names)
        return [own[what] / quickest[what] for own, quickest in pairs if own and quickest]

    time, peak, torchopt = "median_seconds", "peak_mib", across.MEASURED["TorchOpt"]
    yield f"{span(against(across.UNROLL, torchopt, time))} the time, {span(against(across.UNROLL, torchopt, peak))} the"
    first = [x[across.COMPILED]["first_call_seconds"] for x in problems.values() if across.COMPILED in x]
    compiled = span(against(across.COMPILED, torchopt, time))
    yield f"{compiled} the time, after a first call of {min(first):.0f} to {max(first):.0f} s"
    small = against(across.COMPILED, across.JAX, time, ("mlp", "maml", "l2"))
    yield f"small problems | {min(small):.1f} to {max(small):.1f} times the time | JAX"
    large = against(across.COMPILED, across.JAX, time, ("transformer", "conv16"))
    yield f"| {large[0]:.2f} and {large[1]:.2f} times the time | JAX with `jax.checkpoint` |"
    sqrt = measured("large_cpu")["runs"][0]["contenders"]["Unroll(sqrt)"]
    assert f"{sqrt['time_over_plain']:.2f}" == "1.00"
    yield f"12 steps | the same time, {sqrt['peak_over_plain']:.2f} times the memory"


def hypergradients_in_readme() -> Iterator[str]:
    """Against TorchOpt, on the transformer and the two conv nets."""
    times, shares = [], []
    for problem in ("transformer", "conv16", "conv64"):
        found = measured("hypergradient")["problems"][problem]["contenders"]
        ours, theirs = found["Unroll()"], next(x for name, x in found.items() if name.startswith("torchopt"))
        times.append(ours["median_seconds"] / theirs["median_seconds"])
        shares.append(theirs["peak_mib"] / ours["peak_mib"])
    yield f"[1/{min(shares):.0f} to 1/{max(shares):.0f} of TorchOpt's memory]"
    yield f"and {min(times):.1f} to {max(times):.1f} times its time"


def other_libraries_in_readme() -> Iterator[str]:
    """On small problems: JAX as fast as so many calls of Unroll(), TorchOpt as so many meta-steps of ours."""
    problems = [measured("hypergradient")["problems"][name]["contenders"] for name in ("mlp", "maml", "l2")]
    time = "median_seconds"
    jax = [x[across.UNROLL][time] / min(x[form][time] for form in across.JAX if form in x) for x in problems]
    yield f"JAX is [{min(jax):.1f} to {max(jax):.0f} times]"
    programs = measured("meta")["programs"].values()
    yield f"TorchOpt up to [{max(x['ours']['seconds'] / x['TorchOpt']['seconds'] for x in programs):.1f} times]"


def larger_models() -> Iterator[str]:
    yield from map(table, measured("large_cpu")["runs"])


def deep_networks() -> Iterator[str]:
    yield peaks(measured("large_peaks_cpu")["runs"])


def meta_learning() -> Iterator[str]:
    yield bench_meta.table(measured("meta")["programs"])


def estimates() -> Iterator[str]:
    yield bench_estimate.table(measured("estimate_cpu"))


def triton_kernels() -> Iterator[str]:
    record = measured("triton")
    yield bench_triton.table({**record, "predicted": bench_triton.predictions(record["kernels"], record["weights"])})


@pytest.mark.parametrize(
    ("page", "made"),
    [
        ("docs/performance.md", small_problems),
        ("docs/performance.md", step),
        ("docs/performance.md", training_step),
        ("README.md", training_step_in_readme),
        ("README.md", hypergradients_in_readme),
        ("README.md", other_libraries_in_readme),
        ("docs/choosing.md", family),
        ("docs/choosing.md", training_step_in_choosing),
        ("docs/quick-start.md", without_numba),
        ("docs/performance.md", hypergradients),
        ("docs/performance.md", in_short),
        ("docs/performance.md", larger_models),
        ("docs/performance.md", deep_networks),
        ("docs/performance.md", meta_learning),
        ("docs/concepts/cost.md", estimates),
        ("docs/reference/triton.md", triton_kernels),
    ],
)
def test_what_a_page_says_was_measured(page: str, made: Callable[[], Iterator[str]]):
    words = one_line((ROOT / page).read_text())
    texts = list(made())
    assert texts
    assert [text for text in texts if one_line(text) not in words] == []


def one_line(text: str) -> str:
    """Without emphasis, and without the range that a table gives after a number."""
    return " ".join(re.sub(r" \(\d[\d.]* to [\d.]+\)(?= \|)|\*\*", "", text).split())


def test_counts_of_what_is_tested_are_those_of_the_tables():
    bases = (ROOT / "docs" / "reference" / "bases.md").read_text()
    held = sum(map(int, re.findall(r"^Works \((\d+)\)", bases, flags=re.M)))
    contract = f"each put through {len(CHECKS)} checks"
    kills = re.findall(r"KILLS=(\d+)", (ROOT / "Makefile").read_text())[0]
    parts = re.findall(r"^PARTS = ({.*})$", (ROOT / "tests" / "mutants" / "__main__.py").read_text(), flags=re.M)[0]
    faults = f"{sum(ast.literal_eval(parts).values())} small faults"
    for page, said in {
        "docs/status.md": (contract, f"{held} optimizers of [ten packages]", f"[{kills} kills]", f"[{faults}]"),
        "CONTRIBUTING.md": (faults,),
        "docs/integrations.md": (f"{held} optimizers work",),
        "CHANGELOG.md": (f"{held} third-party optimizers",),
    }.items():
        text = one_line((ROOT / page).read_text())
        assert [words for words in said if words not in text] == [], page


def test_numbers_of_readme_that_other_pages_have_too():
    """Each from its source; a page is found by what it says around the number."""
    project = (ROOT / "pyproject.toml").read_text()
    python = re.findall(r'^requires-python = ">=([\d.]+)"', project, flags=re.M)[0]
    torch = re.findall(r'^ +"torch>=([\d.]+)', project, flags=re.M)[0]
    rate, *three = (f"{x:.0e}".replace("e-0", "e-") for x in (tuning.FTP_LR, *tuning.GRIDS["3"]))
    one_rate = next(row for row in rows(report("tuning")) if row[:1] == [f"{tuning.FTP_LR:g}"])
    steps_of = re.findall(r"\d+ to \d+ steps", (ROOT / "docs" / "results.md").read_text())[0]
    minutes = re.findall(r"\d+ to \d+ minutes", (ROOT / "CONTRIBUTING.md").read_text())[0]
    quick, when, results = "docs/quick-start.md", "docs/when.md", "docs/results.md"
    for said, pages in {
        f"Python {python}": ("README.md", "docs/index.md", quick, "docs/differentiate.md", "CONTRIBUTING.md"),
        f"torch {torch}": ("README.md", quick, "docs/differentiate.md"),
        f"lr={rate}": ("README.md", "docs/index.md", quick, "docs/choosing.md", "docs/gotchas.md"),
        f"at {rate}": ("README.md", quick, "docs/choosing.md", when),
        f"FTPAdamW has {rate}": (results, when),
        f"best of three rates ({', '.join(three)})": (results,),
        steps_of: ("README.md", when),
        "ive splits": ("README.md", results, when),
        minutes: ("README.md",),
        f"(on average {one_rate[3]})": ("docs/choosing.md",),
    }.items():
        assert [page for page in pages if said not in one_line((ROOT / page).read_text())] == [], said
