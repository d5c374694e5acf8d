"""Figures: means and bands, names that belong to one method, and a legend for every point."""

import pytest

from benchmarks.hypergradient.contenders import CONTENDERS as BENCHMARKED
from experiments.common import methods, score_figures
from experiments.common.figures import mean_curve
from experiments.common.looks import COLOURS, LOOKS, looks
from experiments.common.score_figures import trade_off, unbeaten
from experiments.meta.noise.methods import METHODS as NOISE
from experiments.tuning.knobs.report import TITLES as KNOBS

NAMES = {
    "methods": [methods.title("anchor"), *(method.title for method in methods.METHODS.values())],
    "knobs": [*KNOBS.values(), "anchor"],
    "noise": [method.title for method in NOISE.values()],
    "benchmark": list(BENCHMARKED),
}


def test_a_mean_curve_is_the_mean_over_seeds_at_each_place():
    assert mean_curve([1, 2], [[1.0, 10.0], [3.0, 10.0]]) == ([1, 2], [2.0, 10.0], [1.0, 0.0])
    assert mean_curve([1, 2], [[1.0, 10.0]]) == ([1, 2], [1.0, 10.0], None)


@pytest.mark.parametrize("study", NAMES)
def test_colour_and_marker_belong_to_one_method(study):
    found = {name: LOOKS[name][:2] for name in NAMES[study]}
    assert len(set(found.values())) == len(found)


def test_other_names_look_like_nobody_in_the_figure():
    names = ["AdamW", *(f"curve {number}" for number in range(12)), "FTPAdamW"]
    found = looks(names)
    assert list(found) == names
    assert len({look[:2] for look in found.values()}) == len(names)
    few = looks([f"curve {number}" for number in range(len(COLOURS))])
    assert len({look.colour for look in few.values()}) == len({look.marker for look in few.values()}) == len(COLOURS)


def test_every_point_is_named(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(score_figures, "save", lambda figure, file: drawn.append(figure))
    points = {"AdamW": ((70.0, 0.5), (60.0, 1.0)), "FTPAdamW": ((72.0, None), (65.0, None))}
    trade_off(tmp_path / "a.png", points, ("learned", "kept"))
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == list(points)


def test_not_beaten_is_who_has_nobody_above_in_both():
    points = {"a": ((1.0, None), (3.0, None)), "b": ((2.0, 9.0), (2.0, 9.0)), "c": ((1.5, None), (1.0, None))}
    assert unbeaten(points) == "Not beaten in both at once: a; b."
