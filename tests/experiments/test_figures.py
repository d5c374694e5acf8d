"""Figures: what is written on them is there to be read."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from experiments.common.heat_maps import Observed, blocks
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from experiments.common import figures, heat_maps, score_figures
from experiments.common.figures import mean_curve
from experiments.common.score_figures import rows_of_scores, trade_off, unbeaten

DPI = 200
FILE = Path("a.png")


@pytest.fixture
def drawn(monkeypatch):
    """The figures that would be saved, at the resolution of the files."""
    found = []

    def draw(figure, file):
        figure.set_dpi(DPI)
        FigureCanvasAgg(figure).draw()
        found.append(figure)

    for module in (figures, heat_maps, score_figures):
        monkeypatch.setattr(module, "save", draw)
    return found


def texts(figure) -> list[Text]:
    """Those that can be read; labels of ticks beyond the ends of an axis are not drawn."""
    return [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]


def boxes(figure, names) -> dict:
    """Of names in the figure; each is there once."""
    found = {name: [text for text in texts(figure) if text.get_text() == name] for name in names}
    assert {name: len(some) for name, some in found.items()} == dict.fromkeys(names, 1)
    # Without the line that leads to the point.
    return {name: Text.get_window_extent(some[0]) for name, some in found.items()}


def test_a_mean_curve_is_the_mean_over_seeds_at_each_place():
    assert mean_curve([1, 2], [[1.0, 10.0], [3.0, 10.0]]) == ([1, 2], [2.0, 10.0], [1.0, 0.0])
    assert mean_curve([1, 2], [[1.0, 10.0]]) == ([1, 2], [1.0, 10.0], None)


POINTS = {
    "AdamW": ((70.0, 0.5), (60.0, 1.0)),
    "FTPAdamW": ((72.0, 0.5), (65.0, 1.0)),
    "FTPAdamW exact": ((72.05, 0.5), (65.1, 1.0)),  # almost the same place
    "WiSE-FT": ((71.0, 0.2), (66.0, 0.3)),
    "TPGM": ((72.0, 0.2), (65.0, 0.3)),  # the very same
    "linear probe": ((66.0, None), (61.0, None)),
    **{f"L2-SP {k}": ((67.0 + k / 5, 0.1), (63.0, 0.1)) for k in range(4)},
}


def test_names_stand_at_their_points_and_not_on_each_other(drawn):
    trade_off(FILE, POINTS, ("learned", "kept"))
    (figure,) = drawn
    assert not figure.legends
    found = boxes(figure, POINTS)
    inside = figure.axes[0].get_window_extent()
    for one, other in combinations(found.values(), 2):
        assert not one.padded(-0.1 * one.height).overlaps(other.padded(-0.1 * other.height))  # lines, not letters
    for name, box in found.items():
        (x, _), (y, _) = POINTS[name]
        assert inside.x0 <= box.x0 < box.x1 <= inside.x1
        place = figure.axes[0].transData.transform((x, y))
        assert np.hypot(*(np.clip(place, box.min, box.max) - place)) < DPI


def test_where_names_have_no_room_there_is_a_legend(drawn):
    crowd = {f"a name that is as long as this one {k}": ((50 + k / 100, None), (50.0, None)) for k in range(40)}
    trade_off(FILE, crowd, ("learned", "kept"))
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == list(crowd)
    assert not drawn[0].axes[0].texts


def test_every_score_has_its_row_and_number(drawn):
    scores = {"anchor, not fine-tuned": [(60.0, None), (55.0, None)], "AdamW": [(70.04, 1.0), (50.0, 2.0)]}
    rows_of_scores(FILE, ["ID", "OOD"], scores, "accuracy (%)", level="anchor, not fine-tuned")
    first, second = drawn[0].axes
    assert [label.get_text() for label in first.get_yticklabels()] == list(scores)
    assert [label.get_text() for label in second.get_yticklabels()] == ["", ""]
    assert [[text.get_text() for text in axes.texts] for axes in (first, second)] == [
        ["60.0", "70.0"],
        ["55.0", "50.0"],
    ]
    assert [axes.lines[-1].get_xdata()[0] for axes in (first, second)] == [60.0, 55.0]


def test_not_beaten_is_who_has_nobody_above_in_both():
    points = {"a": ((1.0, None), (3.0, None)), "b": ((2.0, 9.0), (2.0, 9.0)), "c": ((1.5, None), (1.0, None))}
    assert unbeaten(points) == "Not beaten in both at once: a; b."
    assert unbeaten({"a": ((1.0, None), (1.0, None)), "b": ((1.0, None), (2.0, None))}).endswith("a; b.")


LAYERS = [
    "_conv_stem.weight", "_bn0.bias", "_blocks.0._depthwise_conv.weight", "_blocks.0._bn1.weight",
    "_blocks.1._expand_conv.weight", "_conv_head.weight", "_fc.bias",
]  # fmt: skip


def test_neighbours_are_in_blocks():
    assert blocks(LAYERS) == [("stem", 0, 2), ("block 0", 2, 4), ("block 1", 4, 5), ("head", 5, 7)]
    bert = ["encoder.embeddings.weight", "encoder.encoder.layer.0.output.weight", "encoder.encoder.layer.1.a.bias"]
    assert blocks(bert) == [("stem", 0, 1), ("layer 0", 1, 2), ("layer 1", 2, 3)]
    assert blocks(["a.weight", "b.weight"]) == [("head", 0, 2)]
    many = [f"encoder.block.{k}.{n}" for k in range(10) for n in range(10)]
    fused = [f"fuse.{k}.weight" for k in range(3)]  # each a hundredth of the height: too low for a name of its own
    assert blocks([*many, *fused])[-2:] == [("block 9", 90, 100), ("fuse 0-2", 100, 103)]


def test_heat_maps_share_one_scale_and_name_blocks(drawn):
    low = Observed(LAYERS, [1, 2], [[1e-3] * 7, [1e-9, 1e-2, float("nan"), *[1e-3] * 4]])
    high = Observed(LAYERS, [1, 2], [[1e-3] * 7, [10.0] * 7])
    heat_maps.radii(FILE, {"FTPAdamW": low, "TPGM": high}, "radius")
    left, right, bar = drawn[0].axes
    meshes = [axes.collections[0] for axes in (left, right)]
    assert [(mesh.norm.vmin, mesh.norm.vmax) for mesh in meshes] == [(1e-3, 10.0)] * 2
    assert meshes[0].get_array()[:, 1].tolist() == [1e-3, 1e-2, None, *[1e-3] * 4]  # below the scale: its end
    assert [label.get_text() for label in left.get_yticklabels()] == ["stem", "block 0", "block 1", "head"]
    assert [label.get_text() for label in right.get_yticklabels()] == [""] * 4
    assert left.yaxis_inverted()
    assert bar.get_xlabel() == "radius"
    caption = heat_maps.caption({"FTPAdamW": low, "TPGM": high})
    assert "FTPAdamW: after the last step 5 of 7 tensors are at the end of the scale or below it, 2 of them" in caption
    assert "TPGM: after the last step 0 of 7" in caption
