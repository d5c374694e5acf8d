"""A limit of the library, set for one test."""

from __future__ import annotations

import pytest

from hyperopt_ftp.hyper.guards import verdict
from hyperopt_ftp.hyper.unrolling import eager


def no_graphs_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found of losses under the usual limit is forgotten."""
    monkeypatch.setattr(eager, "SMALL", 0)
    verdict._known.cache_clear()
