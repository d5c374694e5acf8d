"""What second derivatives need of the process: attention by its formula, and functions as they are written."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["compiled_steps", "twice_differentiable"]


class _Shared:
    """Settings of the whole process: entered by the first thread that needs them and left by the last."""

    def __init__(self) -> None:
        self._lock, self._inside, self._stack = threading.Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                with ExitStack() as stack:  # what is entered is left again where the next one fails
                    stack.enter_context(sdpa_kernel(SDPBackend.MATH))
                    stack.enter_context(torch.compiler.set_stance("force_eager"))
                    self._stack = stack.pop_all()
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._stack.close()


_second_order = _Shared()


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Attention by its formula, since fused kernels have no second derivative; compiled functions run as written."""
    with _second_order, _without_autocast_cache():
        yield


@contextmanager
def compiled_steps() -> Iterator[None]:
    """For programs of our own, which have the second derivative inside: they run compiled wherever they are called."""
    with sdpa_kernel(SDPBackend.MATH), torch.compiler.set_stance("default"), _without_autocast_cache(), torch.no_grad():
        yield


@contextmanager
def _without_autocast_cache() -> Iterator[None]:
    """It would hold a copy of every step's params, with their graphs; where it changes, torch compiles anew."""
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(cached)
