"""Recipes run, stay short, and what they show is true."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples" / "recipes"
RECIPES = [
    "darts",
    "distillation",
    "implicit_maml",
    "l2_coefficients",
    "learned_optimizer",
    "learned_schedule",
    "maml",
    "meta_weight_net",
    "torch_optim_outside",
]


def run(name, **size):
    return importlib.import_module(f"examples.recipes.{name}").main(**size)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_at_most_60_lines(name):
    assert len((FOLDER / f"{name}.py").read_text().splitlines()) <= 60


def test_darts_finds_the_right_operations_by_both_orders(tmp_path, capsys):
    found = run("darts", steps=100, seeds=2, figure=str(tmp_path / "darts.png"))
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert (tmp_path / "darts.png").stat().st_size > 0
    assert min(found["second order"]) > 0.7  # chance: 0.2
    assert min(found["first order"]) > 0.7


def test_a_learned_schedule_beats_the_best_constant_rate_and_the_best_ramp(tmp_path, capsys):
    losses = run("learned_schedule", steps=15, figure=str(tmp_path / "schedule.png"))
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert (tmp_path / "schedule.png").stat().st_size > 0
    assert losses["learned"] < 0.98 * min(losses["constant"], losses["linear"])


def test_maml_adapts_in_one_step_where_pre_training_does_not(tmp_path, capsys):
    losses = run("maml", steps=150, figure=str(tmp_path / "maml.png"))
    assert len(capsys.readouterr().out.splitlines()) == 5
    assert (tmp_path / "maml.png").stat().st_size > 0
    assert max(losses["MAML"], losses["ANIL"]) < 0.8 * losses["pre-trained"]
    assert losses["Meta-SGD"] < 0.5 * losses["pre-trained"]


def test_meta_weight_net_sees_through_wrong_labels(tmp_path, capsys):
    scores = run("meta_weight_net", steps=300, figure=str(tmp_path / "weights.png"))
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert (tmp_path / "weights.png").stat().st_size > 0
    assert scores["Meta-Weight-Net"] > max(scores["trained on all"], scores["on 100 clean ones"]) + 3


def test_torch_optim_tunes_what_is_given_as_leaves_and_bilevel_does_the_same(tmp_path, capsys):
    values = run("torch_optim_outside", steps=12, figure=str(tmp_path / "outer.png"))
    assert len(capsys.readouterr().out.splitlines()) == 5
    assert (tmp_path / "outer.png").stat().st_size > 0
    assert values["Adam"] == pytest.approx(values["Adam, by bilevel"], rel=1e-9)
    assert max(x[-1] for x in values.values()) < 0.5 * values["Adam"][0]


def test_distilled_images_teach_more_than_real_ones(tmp_path, capsys):
    found = run("distillation", steps=60, figure=str(tmp_path / "images.png"))
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert (tmp_path / "images.png").stat().st_size > 0
    assert found["distilled"] > found["ten real ones"] + 3


def test_implicit_meta_gradients_are_there_before_unrolled_ones(tmp_path, capsys):
    found = run("implicit_maml", steps=8, lengths=(50, 100), figure=str(tmp_path / "errors.png"))
    assert len(capsys.readouterr().out.splitlines()) == 7
    assert (tmp_path / "errors.png").stat().st_size > 0
    limit, *unroll = found["Unroll"]
    assert limit == 0
    assert found["Implicit"][0] < unroll[0] / 2
    assert found["Implicit"][1] < 0.01  # the tolerance of the solver is 0.003
    assert sum(found["loss"][-3:]) / 3 < 0.7 * found["loss"][0]


def test_one_l2_coefficient_for_each_input_finds_the_noise(tmp_path, capsys):
    found = run("l2_coefficients", steps=12, noise=200, figure=str(tmp_path / "coefficients.png"))
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert (tmp_path / "coefficients.png").stat().st_size > 0
    assert found["one for each"] > found["one for all"] + 5
    assert found["noise"] > 20 * found["pixels"]


def test_a_learned_optimizer_beats_those_it_is_compared_with(tmp_path, capsys):
    found = run("learned_optimizer", steps=25, figure=str(tmp_path / "losses.png"))
    assert len(capsys.readouterr().out.splitlines()) == 6
    assert (tmp_path / "losses.png").stat().st_size > 0
    assert found["ZeroOrder"] < min(found["SGD"], found["momentum"], found["Adam"])
