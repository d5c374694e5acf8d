"""A few kills; `make crash` has many, of every class and execution, and of every variant of a tuning."""

import random

import pytest

from tests.crash import train, tune
from tests.crash.driver import crash


@pytest.mark.parametrize(
    ("program", "kills"), [(train.program("adamw", "foreach"), 4), (tune.program("log"), 1)], ids=["training", "tuning"]
)
def test_what_is_killed_ends_bit_equal_to_an_undisturbed_run(tmp_path, program, kills):
    outcome = crash(program, kills, folder=tmp_path, rng=random.Random(0))
    assert outcome.kills == kills
    assert outcome.in_write >= 1  # the first is aimed, and every second one
    assert not outcome.wrong
    assert outcome.equal == outcome.ends >= 1
