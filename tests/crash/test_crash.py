"""A few kills; `make crash` has many, of every class and execution."""

import random

from tests.crash.driver import crash


def test_a_training_that_is_killed_ends_bit_equal_to_an_undisturbed_one(tmp_path):
    outcome = crash("adamw", "foreach", kills=4, folder=tmp_path, rng=random.Random(0))
    assert outcome.kills == 4
    assert outcome.in_write >= 1  # two were aimed
    assert not outcome.wrong
    assert outcome.equal == outcome.ends >= 1
