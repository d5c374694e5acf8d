"""Trainings and tunings by `bilevel` that are killed at random moments end bit-equal to an undisturbed run.

A few kills of two of them; `make crash` deals out fifty among all classes, executions and variants.
"""

import os
import random
from itertools import product

import pytest

from tests.crash import train, tune
from tests.crash.driver import crash
from tests.support.executions import FLAGS

PROGRAMS = {f"bilevel-{name}": tune.program(name) for name in tune.VARIANTS}
PROGRAMS |= {f"{name}-{how}": train.program(name, how) for name, how in product(train.OPTIMIZERS, FLAGS)}
KILLS = int(os.environ.get("KILLS", "0"))
DEALT = {name: len(range(i, KILLS, len(PROGRAMS))) for i, name in enumerate(PROGRAMS) if i < KILLS}


@pytest.mark.parametrize(("name", "kills"), (DEALT or {"adamw-foreach": 2, "bilevel-log": 1}).items())
def test_what_is_killed_ends_bit_equal_to_an_undisturbed_run(tmp_path, name, kills):
    outcome = crash(PROGRAMS[name], kills, folder=tmp_path, rng=random.Random(0))
    assert outcome.kills == kills
    assert outcome.in_write >= 1  # the first is aimed, and every second one
    assert not outcome.wrong
    assert outcome.equal == outcome.ends >= 1
