"""Every method has a look of its own, the same in all figures."""

import pytest

from benchmarks.hypergradient.contenders import CONTENDERS as BENCHMARKED
from experiments.common import methods
from experiments.common.looks import COLOURS, LOOKS, looks
from experiments.meta.few_shot.methods import TITLES as FEW_SHOT
from experiments.meta.noise.methods import METHODS as NOISE
from experiments.tuning.knobs.report import TITLES as KNOBS
from experiments.tuning.search.contenders import CONTENDERS as SEARCH

NAMES = {
    "methods": [methods.title("anchor"), *(method.title for method in methods.METHODS.values())],
    "knobs": [*KNOBS.values(), "anchor"],
    "search": [contender.title for contender in SEARCH.values()],
    "noise": [method.title for method in NOISE.values()],
    "few-shot": list(FEW_SHOT.values()),
    "benchmark": list(BENCHMARKED),
}


@pytest.mark.parametrize("study", NAMES)
def test_colour_and_marker_belong_to_one_method(study):
    found = {name: LOOKS[name][:2] for name in NAMES[study]}
    assert len(set(found.values())) == len(found)


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
