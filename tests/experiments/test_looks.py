"""Every method has a look of its own, the same in all figures."""

import re

import pytest

from benchmarks.hypergradient.contenders import CONTENDERS as BENCHMARKED
from experiments.common import methods
from experiments.common.looks import COLOURS, LOOKS, SPARE, looks
from experiments.continual.methods import METHODS as CONTINUAL
from experiments.meta.distillation.report import TITLES as DISTILLED
from experiments.meta.few_shot.methods import TITLES as FEW_SHOT
from experiments.meta.learned_optimizer.report import TITLES as OPTIMIZERS
from experiments.meta.noise.methods import METHODS as NOISE
from experiments.tuning.knobs.report import TITLES as KNOBS
from experiments.tuning.search.contenders import CONTENDERS as SEARCH

NAMES = {
    "methods": [methods.title("anchor"), *(method.title for method in methods.METHODS.values())],
    "continual": [method.title for method in CONTINUAL.values()],
    "knobs": [*KNOBS.values(), "anchor"],
    "search": [contender.title for contender in SEARCH.values()],
    "noise": [method.title for method in NOISE.values()],
    "few-shot": list(FEW_SHOT.values()),
    "distillation": [*DISTILLED.values(), "all"],
    "learned-optimizer": list(OPTIMIZERS.values()),
    "benchmark": list(BENCHMARKED),
}


@pytest.mark.parametrize("study", NAMES)
def test_colour_and_marker_belong_to_one_method(study):
    found = {name: LOOKS[name][:2] for name in NAMES[study]}
    assert len(set(found.values())) == len(found)


def test_nobody_else_has_a_look():
    of_towers = {"alone", *(f"height {height}" for height in range(1, 5))}
    known = {name for names in NAMES.values() for name in names} | of_towers | {"FTP, paper"}
    assert set(LOOKS) == known


@pytest.mark.parametrize(("one", "other"), [("FTPAdamW", "FTP"), ("WiSE-FT", "WiSE-FT of AdamW")])
def test_two_names_of_a_method_look_alike(one, other):
    assert LOOKS[one] == LOOKS[other]


def test_other_names_look_like_nobody_in_the_figure():
    names = ["AdamW", *(f"curve {number}" for number in range(12)), "FTPAdamW"]
    found = looks(names)
    assert list(found) == names
    assert len({look[:2] for look in found.values()}) == len(names)
    assert (found["AdamW"], found["FTPAdamW"]) == (LOOKS["AdamW"], LOOKS["FTPAdamW"])
    few = looks([f"curve {number}" for number in range(len(COLOURS))])
    assert len({look.colour for look in few.values()}) == len({look.marker for look in few.values()}) == len(COLOURS)


def luminance(colour: str) -> float:
    """Relative luminance of sRGB, as WCAG 2 defines it."""
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4
              for x in (int(part, 16) / 255 for part in re.findall("..", colour[1:]))]  # fmt: skip
    return sum(weight * x for weight, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_no_colour_is_lost_on_white():
    """Okabe and Ito's yellow has a contrast of 1.3 with white, and each of their others more than 2."""
    assert 1.05 / (luminance("#F0E442") + 0.05) < 2
    for look in (*LOOKS.values(), *SPARE):
        assert 1.05 / (luminance(look.colour) + 0.05) > 2, look
