"""Figures: what is written on them is there to be read."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from experiments.common import figures
from experiments.common.figures import Curve, curves, mean_curve


@pytest.fixture
def drawn(monkeypatch):
    """The figures that would be saved, at the resolution of the files."""
    found = []

    def draw(figure, file):
        figure.set_dpi(120)
        FigureCanvasAgg(figure).draw()
        found.append(figure)

    monkeypatch.setattr(figures, "save", draw)
    return found


@pytest.mark.parametrize(("low", "high"), [(0.9, 7), (4.2, 40), (4, 31), (20, 30), (0.011, 0.05), (1, 1000)])
def test_ticks_of_a_log_axis_do_not_overlap(low, high, drawn):
    x = np.geomspace(low, high, 5).tolist()
    curves(Path("a.png"), {str(i): {"curve": Curve(x, x)} for i in range(3)}, "x", "y", log_x=True)
    for axes in drawn[0].axes:
        labels = [label for label in axes.get_xticklabels() + axes.get_xticklabels(minor=True) if label.get_text()]
        low, high = axes.get_xlim()
        boxes = [x.get_window_extent() for x in labels if low <= x.get_position()[0] <= high]
        boxes.sort(key=lambda box: box.x0)
        assert len(boxes) >= 2
        assert all(one.x1 < other.x0 for one, other in pairwise(boxes))


@pytest.mark.parametrize(
    "names", [12 * ["a curve with a name as long as this one"], ["very long name " * 6], ["a", "b"]]
)
def test_a_legend_is_whole_and_leaves_room(names, drawn):
    named = {f"{name} {number}": Curve([1, 2], [1, 2]) for number, name in enumerate(names)}
    curves(Path("a.png"), {"one panel": named}, "x", "y")
    figure = drawn[0]
    legend, page = figure.legends[0].get_window_extent(), figure.bbox
    assert page.x0 <= legend.x0
    assert legend.x1 <= page.x1
    assert legend.y1 <= page.y1
    axes = figure.axes[0].get_window_extent()
    assert axes.y1 < legend.y0
    assert axes.height > 1.5 * 120


def test_a_mean_curve_is_the_mean_over_seeds_at_each_place():
    assert mean_curve([1, 2], [[1.0, 10.0], [3.0, 10.0]]) == ([1, 2], [2.0, 10.0], [1.0, 0.0])
    assert mean_curve([1, 2], [[1.0, 10.0]]) == ([1, 2], [1.0, 10.0], None)
