"""Hypergradients of sharded params are those of one process."""

from __future__ import annotations

import pytest

from . import sharded_hypergradients as checks
from .launch import launch

CHECKS = {
    2: [
        checks.strategies,
        checks.placements,
        checks.optimizers,
        checks.sizes,
        checks.fully_sharded,
        checks.twice,
        checks.conversions,
        checks.bilevel,
        checks.others,
        checks.refused,
    ],
}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], str]:
    """What went wrong, by number of processes and name of the check; all are run before the first test."""
    folder = tmp_path_factory.mktemp("sharded")
    return {(n, name): said for n, each in CHECKS.items() for name, said in launch(n, each, folder).items()}


@pytest.mark.parametrize(("processes", "check"), [(n, check.__name__) for n, each in CHECKS.items() for check in each])
def test_in_every_process(outcome, processes, check):
    if outcome[processes, check]:
        pytest.fail(outcome[processes, check], pytrace=False)
