"""A fuzz of the whole surface of the drop-in classes: rules in any order, every result compared with the reference.

``make test`` makes a few thousand rule steps, always the same ones; ``make fuzz`` at least 50,000 new ones.
"""

from __future__ import annotations

from collections import Counter
from functools import partial

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from .machine import Machine


def test_whatever_is_done_in_whatever_order_equals_the_reference():
    thorough = settings.default.max_examples > 100
    tally: Counter[str] = Counter()
    runs = settings(
        max_examples=3000 if thorough else 120,
        stateful_step_count=42,
        report_multiple_bugs=False,  # each of them is made small, which takes minutes
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(partial(Machine, tally), settings=runs)
    print(f"\n{tally.total()} rule steps: {dict(tally.most_common())}")
    assert tally.total() >= (50_000 if thorough else 2_000)
    assert tally.keys() == {rule.function.__name__ for rule in Machine.setup_state().rules}
