"""Process-wide settings for second derivatives: attention by its formula, and uncompiled functions."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


def _switches() -> list[tuple[Callable[[], bool], Callable[[bool], None]]]:
    """Of attention's kernels on every device: the formula, then those without a second derivative.

    Set directly: from torch 2.15 on, only the thread that entered sdpa_kernel can leave it.
    """
    c: Any = torch._C
    kinds = ("math", "flash", "mem_efficient", "cudnn", "overrideable")  # the last of devices with kernels of their own
    there = [kind for kind in kinds if hasattr(c, f"_set_sdp_use_{kind}")]
    return [(getattr(c, f"_get_{kind}_sdp_enabled"), getattr(c, f"_set_sdp_use_{kind}")) for kind in there]


class _Shared:
    """Process-wide settings: entered by the first thread that needs them and left by the last.

    Attention goes by its formula. Functions compiled by torch.compile run uncompiled, except while one of our own
    programs runs. A compiled function that another thread's loss calls meanwhile fails at its second derivative, with
    an error.
    """

    def __init__(self) -> None:
        self._lock, self._attention = threading.Lock(), _switches()
        self._eager = self._compiled = 0  # how many are inside
        self._before: list[bool] = []  # of attention
        self._stance: Any = None  # a context that was entered
        self._is: str | None = None

    def add(self, eager: int, compiled: int) -> None:
        with self._lock:
            eager, compiled = self._eager + eager, self._compiled + compiled
            wanted = "default" if compiled else "force_eager" if eager else None
            if wanted != self._is:
                self._set(wanted)
            self._eager, self._compiled = eager, compiled

    def _set(self, stance: str | None) -> None:
        if self._stance is not None:
            self._stance.__exit__(None, None, None)
            self._stance = None
        if stance is not None and "torch._dynamo" in sys.modules:  # else nothing was compiled, and importing takes long
            self._stance = torch.compiler.set_stance(stance)  # is entered as it is made
        if stance is not None and self._is is None:
            self._before = [enabled() for enabled, _ in self._attention]
            for i, (_, enable) in enumerate(self._attention):
                enable(i == 0)
        elif stance is None:
            for (_, enable), was in zip(self._attention, self._before, strict=True):
                enable(was)
        self._is = stance


class _Here(threading.local):
    depth = 0  # how often this thread is inside


_shared, _here = _Shared(), _Here()


class twice_differentiable:  # a context manager
    """Attention by its formula, since fused kernels have no second derivative; compiled functions run uncompiled.

    Without the autocast cache: it would hold a copy of every step's params with their graphs, and if it changes, torch
    recompiles.
    """

    __slots__ = ("_cached",)

    def __enter__(self) -> None:
        if _here.depth == 0:
            _shared.add(1, 0)
        _here.depth += 1  # not where that has failed
        self._cached = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)

    def __exit__(self, *error: object) -> None:
        torch.set_autocast_cache_enabled(self._cached)
        _here.depth -= 1
        if _here.depth == 0:
            _shared.add(-1, 0)


@contextmanager
def compiled_steps() -> Iterator[None]:
    """For our own programs, which always run compiled: they contain the second derivative."""
    with twice_differentiable(), torch.no_grad():
        _shared.add(0, 1)
        try:
            yield
        finally:
            _shared.add(0, -1)
