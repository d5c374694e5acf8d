"""Recipes run, and what they show is true."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a recipe, which prints so many lines and leaves a figure."""

    def call(name: str, lines: int, **size: Any) -> Any:
        figure = tmp_path / "figure.png"
        found = importlib.import_module(f"examples.recipes.{name}").main(**size, figure=str(figure))
        assert len(capsys.readouterr().out.splitlines()) == lines
        assert figure.stat().st_size > 0
        return found

    return call


def test_darts_finds_the_right_operations_by_both_orders(run):
    found = run("darts", 3, steps=100, seeds=2)
    assert min(found["second order"]) > 0.7  # chance: 0.2
    assert min(found["first order"]) > 0.7


def test_a_learned_schedule_beats_the_best_constant_rate_and_the_best_ramp(run):
    losses = run("learned_schedule", 4, steps=15)
    assert losses["learned"] < 0.98 * min(losses["constant"], losses["linear"])


def test_maml_adapts_in_one_step_where_pre_training_does_not(run):
    losses = run("maml", 5, steps=150)
    assert max(losses["MAML"], losses["ANIL"]) < 0.8 * losses["pre-trained"]
    assert losses["Meta-SGD"] < 0.5 * losses["pre-trained"]


def test_meta_weight_net_sees_through_wrong_labels(run):
    scores = run("meta_weight_net", 4, steps=300)
    assert scores["Meta-Weight-Net"] > max(scores["trained on all"], scores["on 100 clean ones"]) + 3


def test_torch_optim_tunes_what_is_given_as_leaves_and_bilevel_does_the_same(run):
    values = run("torch_optim_outside", 5, steps=12)
    assert values["Adam"] == pytest.approx(values["Adam, by bilevel"], rel=1e-9)
    assert max(x[-1] for x in values.values()) < 0.5 * values["Adam"][0]


def test_distilled_images_teach_more_than_real_ones(run):
    found = run("distillation", 3, steps=60)
    assert found["distilled"] > found["ten real ones"] + 3


def test_implicit_meta_gradients_are_there_before_unrolled_ones(run):
    found = run("implicit_maml", 7, steps=8, lengths=(50, 100))
    limit, *unroll = found["Unroll"]
    assert limit == 0
    assert found["Implicit"][0] < unroll[0] / 2
    assert found["Implicit"][1] < 0.01  # the tolerance of the solver is 0.003
    assert sum(found["loss"][-3:]) / 3 < 0.7 * found["loss"][0]


def test_one_l2_coefficient_for_each_input_finds_the_noise(run):
    found = run("l2_coefficients", 4, steps=12, noise=200)
    assert found["one for each"] > found["one for all"] + 5
    assert found["noise"] > 20 * found["pixels"]


def test_a_learned_optimizer_beats_those_it_is_compared_with(run):
    found = run("learned_optimizer", 6, steps=25)
    assert found["ZeroOrder"] < min(found["SGD"], found["momentum"], found["Adam"])


def test_a_recipe_has_at_most_60_lines():
    """As docs/recipes.md says."""
    folder = Path(__file__).parent.parent / "examples" / "recipes"
    lengths = {path.name: len(path.read_text().splitlines()) for path in folder.glob("[!_]*.py")}
    assert len(lengths) >= 9
    assert {name: length for name, length in lengths.items() if length > 60} == {}
