"""The fused executions: where each runs, and how it goes through a graph that torch.compile captures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from . import cpu, triton
from .layers import PLAIN, SGD, AdamW, Amp, Ball, Layers


class Fused(NamedTuple):
    """One fused execution: the functions of its launcher, through an op where a graph is being captured."""

    name: str
    launcher: ModuleType

    def step_(self, layers: Layers, base: AdamW | SGD, ball: Ball, amp: Amp = PLAIN) -> None:
        if torch.compiler.is_compiling():
            self._through_op("step_", layers, ball, amp, base)
        else:
            self.launcher.step_(layers, base, ball, amp)

    def radii_(self, layers: Layers, ball: Ball, amp: Amp = PLAIN) -> Tensor:
        if torch.compiler.is_compiling():
            return self._through_op("radii_", layers, ball, amp)
        return self.launcher.radii_(layers, ball, amp)

    def project_(self, layers: Layers, packed: Tensor, ball: Ball) -> None:
        if torch.compiler.is_compiling():
            self._through_op("project_", layers, ball, PLAIN, packed=packed)
        else:
            self.launcher.project_(layers, packed, ball)

    def _through_op(
        self, what: str, layers: Layers, ball: Ball, amp: Amp, base: AdamW | SGD | None = None,
        packed: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        from .custom_op import run  # takes milliseconds to define

        tensor_lr = base.lr if base is not None and isinstance(base.lr, Tensor) else None
        numbers = [0.0 if isinstance(x, Tensor) else float(x) for x in (ball.radius_lr, ball.kappa, *(base or ()))]
        weights, grads, steps, anchors, *state, moments = layers
        return run(
            self.name, what, weights, grads, _apart(steps), _apart(anchors),
            [x for column in (*state, *moments) for x in _apart(column)], isinstance(base, AdamW), tensor_lr, packed,
            numbers, ball.norm, ball.exact, amp.maximize, amp.grad_scale, amp.found_inf,
        )  # fmt: skip


FUSED = {"fused_cpu": Fused("fused_cpu", cpu), "triton": Fused("triton", triton)}

#: The fused execution of a device, and the package it needs.
BEST = {"cpu": ("fused_cpu", "numba"), "cuda": ("triton", "triton")}

#: Devices whose fused execution runs without being asked for. "cuda" is not among them, since the Triton kernels have
#: never run on a GPU. Add it once benchmarks/gpu.sh, which begins with tests/gpu, has passed on one and its result is
#: committed in benchmarks/results.
UNASKED = frozenset({"cpu"})

#: Looked up once: torch before 2.13 cannot trace a look-up.
INSTALLED = frozenset(package for _, package in BEST.values() if find_spec(package))

#: The extra of this package that brings each of them.
EXTRAS = {"numba": "cpu", "triton": "gpu"}

#: Whether Numba was told to compile nothing: its kernels are no Python then. Looked up once, too.
JIT_DISABLED = os.environ.get("NUMBA_DISABLE_JIT", "0").strip() not in ("", "0")


def why_not(params: Sequence[Tensor], asked: bool = False) -> str | None:
    """Why a fused execution does not step these parameters; ``None`` where it does.

    Args:
        asked: by ``fused=True``. It lets kernels run that are no default on their device.
    """
    devices = sorted({p.device.type for p in params})
    if len(devices) > 1 or devices[0] not in BEST:
        return f"the parameters are on {devices}, and it needs all on the CPU, or all on a GPU with Triton"
    for p in params:
        if type(p) not in (Tensor, torch.nn.Parameter):
            return f"a parameter is a {type(p).__name__}, and it needs plain tensors"
        if not _rows_are_dense(p):
            return f"a parameter of shape {tuple(p.shape)} and strides {p.stride()} does not keep its rows in one piece"
    package = BEST[devices[0]][1]
    if package not in INSTALLED:
        why = f"the package {package} is not installed (pip install 'hyperopt-ftp[{EXTRAS[package]}]')"
        if devices[0] in UNASKED and not asked and not torch.compiler.is_compiling():
            cpu.say_slower(why)
        return why
    if package == "numba" and JIT_DISABLED:
        return "NUMBA_DISABLE_JIT is set, so that Numba compiles nothing (unset it before Python starts)"
    if not asked and devices[0] not in UNASKED:
        return f"on {devices[0]} it has to be asked for, by fused=True"
    return None


def _rows_are_dense(p: Tensor) -> bool:
    """Whether each row of ``p`` is one piece of memory and the rows follow each other, whatever the columns' order."""
    order = sorted(range(1, p.ndim), key=lambda d: -p.stride(d))
    return p.is_contiguous() or p.permute(0, *order).is_contiguous()


def _apart(column: list[Tensor]) -> list[Tensor]:
    """An empty tensor for each that is absent: what an op changes must not be in its arguments twice."""
    return [x if x.numel() else torch.empty_like(x) for x in column]
