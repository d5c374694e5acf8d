"""Process-wide settings for second derivatives: attention by its formula, and uncompiled functions."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch.backends import cuda as attention  # on every device

_FUSED = ("flash", "mem_efficient", "cudnn")


class _Shared:
    """Process-wide settings: entered by the first thread that needs them and left by the last.

    Attention goes by its formula. Functions compiled by torch.compile run uncompiled, except while one of our own
    programs runs. A compiled function that another thread's loss calls meanwhile fails at its second derivative, with
    an error.
    """

    def __init__(self) -> None:
        self._lock, self._stack = threading.Lock(), ExitStack()
        self._eager = self._compiled = 0  # how many are inside
        self._stance: str | None = None  # that is set

    def add(self, eager: int, compiled: int) -> None:
        with self._lock:
            eager, compiled = self._eager + eager, self._compiled + compiled
            wanted = "default" if compiled else "force_eager" if eager else None
            if wanted != self._stance:
                self._set(wanted)
            self._eager, self._compiled = eager, compiled

    def _set(self, stance: str | None) -> None:
        self._stack.close()
        self._stack, self._stance = ExitStack(), None
        if stance is not None:
            with ExitStack() as stack:  # what is entered is left again where the next one fails
                stack.enter_context(_attention_by_formula())
                if "torch._dynamo" in sys.modules:  # else nothing has been compiled, and importing it takes a second
                    stack.enter_context(torch.compiler.set_stance(stance))
                self._stack = stack.pop_all()
        self._stance = stance


@contextmanager
def _attention_by_formula() -> Iterator[None]:
    """Sets the flags directly: from torch 2.15 on, only the thread that entered sdpa_kernel can leave it."""
    switches = [(getattr(attention, f"{k}_sdp_enabled"), getattr(attention, f"enable_{k}_sdp")) for k in _FUSED]
    if hasattr(torch._C, "_set_sdp_use_overrideable"):  # of devices that bring kernels of their own
        switches.append((torch._C._get_overrideable_sdp_enabled, torch._C._set_sdp_use_overrideable))
    formula = attention.math_sdp_enabled()
    before = [enabled() for enabled, _ in switches]
    try:
        attention.enable_math_sdp(True)
        for _, enable in switches:
            enable(False)
        yield
    finally:
        for (_, enable), was in zip(switches, before, strict=True):
            enable(was)
        attention.enable_math_sdp(formula)


_shared = _Shared()


class twice_differentiable:  # a context manager
    """Attention by its formula, since fused kernels have no second derivative; compiled functions run uncompiled.

    Without the autocast cache: it would hold a copy of every step's params with their graphs, and if it changes, torch
    recompiles. ``compiled``: for programs that contain the second derivative.
    """

    __slots__ = ("_cached", "_compiled")

    def __init__(self, compiled: bool = False) -> None:
        self._compiled = compiled

    def __enter__(self) -> None:
        _shared.add(not self._compiled, self._compiled)
        self._cached = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)

    def __exit__(self, *error: object) -> None:
        torch.set_autocast_cache_enabled(self._cached)
        _shared.add(-(not self._compiled), -self._compiled)


@contextmanager
def compiled_steps() -> Iterator[None]:
    """For our own programs, which always run compiled."""
    with twice_differentiable(compiled=True), torch.no_grad():
        yield
