"""Says that the fused CPU step is being compiled, since that takes seconds. Imports Numba."""

# Numba's functions are not Python's.
# pyright: reportFunctionMemberAccess=false, reportAttributeAccessIssue=false

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from typing import Any

from numba.core import event

from .cpu_kernels import move


class _Notice(event.Listener):
    """One line of the log when the kernels are compiled; from Numba's cache on disk they come without a word."""

    def __init__(self, weights: str) -> None:
        self.weights, self.said = weights, False

    def on_start(self, event: Any) -> None:
        if self.said or event.data["dispatcher"] is not move:  # what it calls is compiled within
            return
        self.said = True
        place = move.stats.cache_path
        often = (
            f"once on this machine, kept in {place}"
            if place
            else "in every process: Numba has no folder to keep it in; set NUMBA_CACHE_DIR to one that can be written"
        )
        logging.getLogger("hyperopt_ftp").warning(
            "compiling the fused CPU step for %s weights: some seconds, %s", self.weights, often
        )

    def on_end(self, event: Any) -> None:
        pass


def announced(weights: str) -> AbstractContextManager[Any]:
    """A context in which a compilation of the kernels is said; ``weights`` is their dtype, in words."""
    return event.install_listener("numba:compile", _Notice(weights))
