"""The page across the studies: what counts as a task, as equal, and as the best of a family."""

import json
from pathlib import Path

import pytest

from experiments.common.methods import METHODS
from experiments.studies.across import (
    FAMILIES,
    across,
    best_of,
    by_family,
    by_method,
    equals_best,
    scores_by_task,
    shortfall,
)
from experiments.studies.jobs import FULL, Job

KEPT = Path(__file__).parents[2] / "docs" / "studies"

SCORES = {
    "adamw": {"id": (80.0, 0.3), "ood": (60.0, 0.4)},
    "ftp": {"id": (79.2, 0.4), "ood": (65.0, None)},
    "wise": {"id": (78.0, 0.3), "ood": (65.0, 0.1)},
    "spd": {"id": (70.0, 0.0), "ood": (70.0, 0.0)},
}


def test_within_two_standard_errors_of_the_difference():
    assert equals_best(SCORES, "adamw", "id")
    assert equals_best(SCORES, "ftp", "id")  # 0.8 <= 2 sqrt(0.3^2 + 0.4^2) = 1.0
    assert not equals_best(SCORES, "wise", "id")  # 2.0 > 2 sqrt(2) 0.3
    assert not equals_best(SCORES, "ftp", "ood")
    assert shortfall(SCORES, "ftp", "ood") == pytest.approx(5.0)


def test_best_of_a_family_is_that_of_the_sum():
    assert best_of(SCORES, ("adamw", "wise", "lora")) == "wise"
    assert best_of(SCORES, ("lora",)) is None


def test_every_way_of_fine_tuning_is_in_one_family():
    named = [method for family in FAMILIES.values() for method in family]
    assert len(named) == len(set(named))
    # The default itself, one that is a remark in the guide, and what is compared in a study of its own.
    rates = {"adamw_warmup", "wise_warmup", "ftp_share"}
    assert METHODS.keys() - set(named) == {"ftp", "ftp_start", "muon", "ftp_muon", *rates}


def record(folder: Path, name: str, methods: dict, seeds: list[int], status: str = "finished") -> Job:
    rows = {method: {"columns": row} for method, row in methods.items()}
    config = {"methods": list(methods), "seeds": seeds}
    content = {"experiment": "toy", "status": status, "config": config, "summary": {"methods": rows}}
    (folder / name).mkdir()
    (folder / name / "metrics.json").write_text(json.dumps(content))
    return Job(name, "", "")


def test_studies_that_differ_in_methods_alone_are_one_task(tmp_path):
    first = {name: SCORES[name] for name in ("adamw", "ftp", "wise")}
    second = {"anchor": {"id": (1.0, None), "ood": (2.0, None)}, **SCORES}
    jobs = [
        record(tmp_path, "one", first, [0]),
        record(tmp_path, "two", second, [0]),
        record(tmp_path, "three", first, [1]),
        record(tmp_path, "four", {name: SCORES[name] for name in ("adamw", "ftp")}, [2]),  # nothing to compare with
        record(tmp_path, "five", first, [3], status="running"),
        Job("six", "", ""),
    ]
    tasks = scores_by_task(jobs, tmp_path)
    assert {task: list(scores) for task, scores in tasks.items()} == {
        "one and two": ["adamw", "ftp", "wise", "anchor", "spd"],
        "three": ["adamw", "ftp", "wise"],
    }
    header, rows = by_family(tasks)
    assert (header[1], rows[0][1]) == ("anchor, not fine-tuned", "1.0 / 2.0")
    assert dict(zip(header, rows[1], strict=True)) == {
        "study": "three",
        "anchor, not fine-tuned": "",
        "FTPAdamW, default": "79.2 ± 0.4 / 65.0",
        "AdamW": "AdamW 80.0 ± 0.3 / 60.0 ± 0.4",
        "a pull toward the anchor": "",
        "other radii": "",
        "mixed afterwards": "WiSE-FT 78.0 ± 0.3 / 65.0 ± 0.1",
        "adapters": "",
    }
    _, methods = by_method(tasks)
    assert [row[0] for row in methods] == ["FTPAdamW", "WiSE-FT", "AdamW"]  # SPD has one task
    assert methods[0][1:] == ["2 of 2", "1 of 2", "1 of 2", "0.8", "2.5"]


def test_the_kept_page_is_that_of_the_kept_numbers():
    assert (KEPT / "across.md").read_text() == across(FULL, KEPT), "python -m experiments.studies --redraw docs/studies"
