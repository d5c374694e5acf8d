"""The table of a comparison: means, standard errors, differences seed by seed."""

import pytest

from experiments.common.report_kit import markdown
from experiments.common.tables import differences, summarise, table_of


class FakeTask:
    def __init__(self) -> None:
        self.metric = "accuracy"
        self.columns = {"id": ("photo",), "sketch": ("sketch",), "ood": ("sketch", "paint")}
        self.titles = {"id": "ID: photo", "ood": "OOD mean"}


def result(id_score: float, sketch: float, ood: float, **facts) -> dict:
    speed = {"images_per_second": 100.0, "peak_mib": 500, "seconds": 2.0, "lr": 5e-4, "diverged": False}
    return {"id": id_score, "sketch": sketch, "ood": ood, **speed, **facts}


def test_the_table_equals_one_computed_by_hand():
    content = {
        "config": {"methods": ["adamw", "ftp"], "seeds": [0, 1, 2]},
        "anchor": {"scores": {}, "id": 60.0, "sketch": 50.0, "ood": 55.0},
        "results": {
            "adamw-seed0": result(70.0, 40.0, 30.0),
            "adamw-seed1": result(72.0, 40.0, 34.0, images_per_second=130.0, diverged=True),
            "adamw-seed2": result(74.0, 40.0, 38.0, images_per_second=None),
            "ftp-seed0": result(71.0, 50.0, 41.0, lr=1e-3),
            "ftp-seed1": result(72.0, 53.0, 47.0, lr=1e-3),
            "ftp-seed2": result(76.0, 56.0, 50.0, lr=1e-3),
        },
    }
    summary = summarise(content, FakeTask())["summary"]
    rows = summary["methods"]
    assert list(rows) == ["anchor", "adamw", "ftp"]
    assert rows["anchor"]["columns"] == {"id": (60.0, None), "sketch": (50.0, None), "ood": (55.0, None)}
    # 70, 72, 74: deviation 2, by the root of 3
    assert rows["adamw"]["columns"]["id"] == (72.0, pytest.approx(2 / 3**0.5))
    assert rows["adamw"]["columns"]["sketch"] == (40.0, 0.0)
    assert rows["adamw"]["columns"]["ood"] == (34.0, pytest.approx(4 / 3**0.5))
    assert rows["adamw"]["diverged"] == 1
    assert rows["ftp"]["columns"]["sketch"] == (53.0, pytest.approx(3**0.5))
    # 71, 72, 76 about 73: squares 4, 1, 9, so a variance of 7
    assert rows["ftp"]["columns"]["id"] == (73.0, pytest.approx((7 / 3) ** 0.5))
    # seed by seed 1, 0, 2 and 11, 13, 12
    assert summary["minus_adamw"] == {
        "ftp": {"id": (1.0, pytest.approx(1 / 3**0.5)), "ood": (12.0, pytest.approx(1 / 3**0.5))}
    }
    header, lines = table_of(summary)
    assert markdown(header, lines) == [
        "| method | ID: photo | sketch | OOD mean | lr | images/s | peak MiB |",
        "|---|--:|--:|--:|--:|--:|--:|",
        "| anchor, not fine-tuned | 60.0 | 50.0 | 55.0 |  |  |  |",
        "| AdamW (1 diverged) | 72.0 ± 1.2 | 40.0 ± 0.0 | 34.0 ± 2.3 | 0.0005 | 77 | 500 |",
        "| FTPAdamW | 73.0 ± 1.5 | 53.0 ± 1.7 | 46.0 ± 2.6 | 0.001 | 100 | 500 |",
    ]
    assert differences(summary) == ["FTPAdamW minus AdamW, seed by seed: OOD +12.0 ± 0.6, ID +1.0 ± 0.6 points."]


def test_the_table_of_one_seed_has_no_errors():
    content = {
        "config": {"methods": ["wise", "adamw"], "seeds": [5]},
        "anchor": {"kind": "imagenet"},
        "results": {"adamw-seed5": result(70.0, 40.0, 30.0), "wise-seed5": result(69.5, 44.0, 33.0)},
    }
    summary = summarise(content, FakeTask())["summary"]
    assert list(summary["methods"]) == ["wise", "adamw"]
    assert table_of(summary)[1][0][:4] == ["WiSE-FT", "69.5", "44.0", "33.0"]
    assert differences(summary) == ["WiSE-FT minus AdamW, seed by seed: OOD +3.0, ID -0.5 points."]
    assert (
        summarise({**content, "config": {"methods": ["wise"], "seeds": [5]}}, FakeTask())["summary"]["minus_adamw"]
        == {}
    )
