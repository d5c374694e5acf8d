"""FTP's knobs by hypergradient: who sees which emoji, derivatives, choices, means, and the command."""

import dataclasses
import math

import pytest
import torch

from experiments.classification.data import Pictures
from experiments.classification.emoji import CLASSES, STYLES
from experiments.tuning.knobs import report
from experiments.tuning.knobs.config import HIGHEST, LOWEST, OUTER_LR, START, Config, Knobs
from experiments.tuning.knobs.study import STUDY
from experiments.tuning.knobs.styles import ROLES, Styles
from experiments.tuning.knobs.tuning import (
    SOURCES,
    Losses,
    Trainee,
    Tuner,
    best_point,
    best_rate,
    best_round,
    draws,
    with_knobs,
)
from tests.experiments.running import ran, results

ITEMS = 96
SMALL = Config(
    seeds=(0,), styles=(1,), pretrain_items=24, anchor_steps=40, steps=3, batch_size=8, lrs=(1e-3, 3e-3), tries=3,
    rounds=2,
)  # fmt: skip
OPTIONS = ("--styles", "1", "--pretrain-items", "24", "--anchor-steps", "2", "--steps", "2", "--batch-size", "4",
           "--lrs", "1e-3", "3e-3", "--tries", "3", "--rounds", "2")  # fmt: skip


@pytest.fixture(scope="module")
def data() -> Styles:
    """Features of one place for each emoji, near its class's; every fourth emoji has a twin in its group."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(ITEMS).remainder(8).repeat(3)
    centres = torch.randn(8, 320, 1, 1, generator=generator)
    x = centres[labels] + torch.randn(3 * ITEMS, 320, 1, 1, generator=generator)
    items = tuple(f"item{i}" for i in range(ITEMS)) * 3
    groups = tuple(f"group{i - 8 if i % 32 >= 24 else i}" for i in range(ITEMS)) * 3
    return Styles(Pictures(x, labels, torch.arange(3).repeat_interleave(ITEMS), items, groups, CLASSES, STYLES))


@pytest.fixture(scope="module")
def tuner(data) -> Tuner:
    trainee, parts = Trainee(data.features), data.parts(SMALL, seed=0, style=1)
    return Tuner(SMALL, trainee, parts, trainee.anchor(SMALL, parts.pretrain, 0), seed=0)


@pytest.mark.parametrize("style", [0, 1, 2])
def test_no_emoji_and_no_group_is_in_two_parts(data, style):
    parts, features = data.parts(SMALL, 0, style), data.features

    def of(names, rows):
        return {names[row] for row in rows.tolist()}

    for names in (features.items, features.groups):
        sets = [of(names, rows) for rows in (parts.pretrain, parts.train, parts.held_out["own"], parts.test["own"])]
        assert all(sets)
        assert sum(map(len, sets)) == len(set.union(*sets))
    assert len(of(features.items, parts.pretrain)) == 24
    assert features.domains[parts.pretrain].unique().tolist() == [0, 1, 2]
    assert features.domains[parts.train].unique().tolist() == [style]
    assert parts.held_out.keys() == {"own", "other"}
    for number, role in enumerate(ROLES):
        assert features.domains[parts.test[role]].unique().tolist() == [(style + number) % 3]
        assert of(features.items, parts.test[role]) == of(features.items, parts.test["own"])
    assert features.domains[parts.held_out["other"]].unique().tolist() == [(style + 1) % 3]
    assert of(features.items, parts.held_out["other"]) == of(features.items, parts.held_out["own"])
    other = data.parts(SMALL, 1, style)
    assert of(features.items, other.train) != of(features.items, parts.train)


def test_bilevel_begins_with_a_training_and_a_step_of_adam_on_free_values(tuner):
    found, config = tuner.bilevel("own"), tuner.config
    start = START
    assert found["way"][0] == list(start)
    assert len(found["way"]) == len(found["values"]) + 1 == len(found["slopes"]) + 1 == 3
    for point, value in zip(found["way"], found["values"], strict=False):  # the same batches in each round
        losses = tuner.held_out(with_knobs(config.steps, tuner.anchor, Knobs(*point)))
        assert value == pytest.approx(losses["own"], rel=1e-4)
    scale = (start.lr, start.radius_lr, start.kappa * (1 - start.kappa))
    moves = [-OUTER_LR * h * s / (abs(h * s) + 1e-8) for h, s in zip(found["slopes"][0], scale, strict=True)]
    odds = start.kappa / (1 - start.kappa) * math.exp(moves[2])
    expected = [start.lr * math.exp(moves[0]), start.radius_lr * math.exp(moves[1]), odds / (1 + odds)]
    assert found["way"][1] == pytest.approx(expected, rel=1e-3)
    assert abs(moves[1]) == pytest.approx(OUTER_LR, rel=1e-3)


def test_choices_are_the_smallest_losses_and_a_divergence_is_never_one():
    rates: dict[str, Losses] = {
        "0.1": {"own": 1.0, "other": 3.0},
        "0.2": {"own": 2.0, "other": 1.5},
        "0.3": {"own": None, "other": 0.0},
    }
    assert [best_rate(rates, source) for source in ("own", "other")] == [0.1, 0.3]
    losses: list[Losses] = [{"own": 1.0, "other": 2.0} for _ in range(8)]
    losses[5], losses[6] = {"own": 0.5, "other": 2.5}, {"own": 0.0, "other": None}
    assert best_point(losses, "other") == 0
    assert best_point(losses, "own") == 6
    assert best_round([2.0, None, 1.0, 1.5]) == 2


def test_the_random_search_draws_between_its_ends_and_evenly_in_logarithms():
    found = draws(dataclasses.replace(SMALL, tries=400), seed=4)
    assert len(set(found)) == 400
    assert found != draws(dataclasses.replace(SMALL, tries=400), seed=5)
    for k, values in enumerate(zip(LOWEST, HIGHEST, strict=True)):
        drawn = [knobs[k] for knobs in found]
        assert min(values) <= min(drawn) <= max(drawn) <= max(values)
        middle = sum(values) / 2 if k == 2 else math.sqrt(min(values) * max(values))
        assert abs(sum(x < middle for x in drawn) - 200) < 50  # five standard deviations


def test_means_are_over_styles_then_seeds_and_differences_are_paired():
    def result(seed, ours, defaults):
        scores = {"ours": ours, "ftp": defaults}
        tests = {name: {"scores": {role: [x, x / 10] for role in ROLES}} for name, x in scores.items()}
        return {"seed": seed, "sources": {"other": {"tests": tests}}}

    results = [result(0, 50.0, 41.0), result(0, 60.0, 45.0), result(1, 70.0, 52.0), result(1, 80.0, 66.0)]
    content = {"config": {"seeds": [0, 1]}, "results": dict(enumerate(results))}
    pick, minus = (report.accuracy("other", method, "own") for method in ("ours", "ftp"))
    assert report.estimated(content, pick) == pytest.approx((65.0, 10.0))
    assert report.estimated(content, pick, minus) == pytest.approx((14.0, 2.0))
    results[2]["sources"]["other"]["tests"]["ours"]["scores"]["own"][0] = None
    assert report.estimated(content, pick) is None


def test_a_stopped_run_goes_on_and_ends_with_the_same_numbers(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ("--seeds", "0", "1", *OPTIONS, "--out", "runs/stopped")
    assert ran(STUDY, *arguments, data=data, stop_before="style1-seed1").status == 130
    status, text, begun = ran(STUDY, *arguments, data=data)
    assert (status, begun) == (0, ["style1-seed1"])
    monkeypatch.setattr(report, "trade_off", lambda *_: None)  # drawn once
    assert ran(STUDY, "--seeds", "1", *OPTIONS, "--out", "runs/undisturbed", data=data).status == 0
    folder = tmp_path / "runs" / "stopped"
    found = results(folder)
    assert found["style1-seed1"] == results(folder.parent / "undisturbed")["style1-seed1"]
    assert found["style1-seed0"]["anchor"] != found["style1-seed1"]["anchor"]
    assert found["style1-seed0"]["sources"].keys() == {*SOURCES}
    written = (folder / "report.md").read_text()
    assert [file.name for file in folder.glob("*.png")] == ["trade-off.png"]
    assert "OpenMoji, Noto outline, Twemoji" in written
    assert written.count("| FTP, hypergradient |") == len(SOURCES) + 1  # and what the search took
    assert "FTP, hypergradient, on the own" in text
    assert ran(STUDY, *arguments, data=data).begun == []
