"""A fuzz of `bilevel`: rules in any order, each round compared with one call of `hypergradient`.

``make test`` makes a few hundred rule steps, always the same ones; ``make fuzz`` many thousand new ones.
"""

from __future__ import annotations

from collections import Counter
from functools import partial

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from .bilevel_machine import Machine


@pytest.mark.filterwarnings("ignore:the hypergradient of:UserWarning")  # of a radius that no row reaches
def test_whatever_is_done_in_whatever_order_rounds_are_what_they_are_alone():
    thorough = settings.default.max_examples > 100
    tally: Counter[str] = Counter()
    runs = settings(
        max_examples=600 if thorough else 16,
        stateful_step_count=30,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(partial(Machine, tally), settings=runs)
    print(f"\n{tally.total()} rule steps and rounds: {dict(tally.most_common())}")
    assert tally["round"] >= (10_000 if thorough else 200)
    assert all(tally[end] for end in ("lost", "skipped", "error"))
    assert all(tally[rule.function.__name__] for rule in Machine.setup_state().rules)
