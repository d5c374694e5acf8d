"""Launches of the Triton execution: the fused step of all layers in four launches, without a host sync.

Order ("radius first"): ``partials`` (<g, c> / n by row), ``radii`` (Adam on the radii), ``move`` (the base's move and
the projection), ``clip``. Where the dtypes of the anchors differ, they are copied at each step.

A row is one program's, however long it is: under ``norm="l2"``, or in a large tensor of one dimension, all of the
tensor. ``foreach`` is there for those, and for CUDA graphs: a table of addresses goes to the device at each step.

Imports triton when it is called. Runs on CPU tensors under ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .layers import PLAIN, SGD, AdamW, Amp, Ball, Layers, check, working_dtype


def step_(layers: Layers, base: AdamW | SGD, ball: Ball, amp: Amp = PLAIN) -> None:
    """A whole FTP step, in place."""
    _Run(layers, ball, base, amp).launch("partials", "radii", "move", "clip")


def radii_(layers: Layers, ball: Ball, amp: Amp = PLAIN) -> Tensor:
    """The radii's half of a step, before a base of another kind moves the weights.

    Advances the radii's moments and their steps; returns the new radii, not yet clipped, shape (layers,); 0 for an
    unconstrained layer.
    """
    run = _Run(layers, ball, None, amp)
    run.launch("partials", "radii")
    return run.packed


def project_(layers: Layers, packed: Tensor, ball: Ball) -> None:
    """The other half, after the base's step: c, n, the clipped radii and the projected weights."""
    _Run(layers, ball, None, packed=packed).launch("move", "clip")


class _Run:
    """One call: its tables, scratch memory, and all arguments of its kernels by name."""

    def __init__(
        self, layers: Layers, ball: Ball, base: AdamW | SGD | None, amp: Amp = PLAIN, packed: Tensor | None = None
    ) -> None:
        from . import triton_kernels as kernels

        weight, count = layers.weights[0], len(layers.weights)
        self.kernels, self.device = kernels, weight.device
        real = working_dtype(weight)
        check(layers, base)
        if self.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("the Triton step cannot be captured into a CUDA graph; use foreach=True")
        self.packed = torch.empty(count, dtype=real, device=self.device) if packed is None else packed
        if len({w0.dtype for w0 in layers.anchors if w0.numel()}) > 1:  # the kernels take one
            layers = layers._replace(anchors=[w0.to(real) if w0.numel() else w0 for w0 in layers.anchors])
        self.layers = layers  # as long as its addresses are used
        anchor, deviation = (next((x.dtype for x in c if x.numel()), real) for c in (layers.anchors, layers.deviations))
        types = {"T": real, "W_T": weight.dtype, "G_T": layers.grads[0].dtype, "W0_T": anchor, "C_T": deviation}
        rows = tuple(_rows(w, radius, ball) for w, radius in zip(layers.weights, layers.radii, strict=True))
        self.owners = _owners(rows, self.device, _stream(self.device))
        numbers: dict[str, Any] = dict.fromkeys(("lr", "beta1", "beta2", "eps", "weight_decay", "momentum"), 0.0)
        numbers |= {"radius_lr": ball.radius_lr, "kappa": ball.kappa, **({} if base is None else base._asdict())}
        lr = numbers["lr"]
        on_device = isinstance(lr, Tensor) and lr.device == self.device  # one of the CPU is read: nothing waits
        numbers["lr"] = 0.0 if on_device else lr
        self.arguments: dict[str, Any] = {
            "layers": _sent(table(layers, base, rows), self.device),
            "owners": self.owners,
            "sums": torch.empty(len(self.owners), dtype=real, device=self.device),
            "numbers": torch.empty(count, kernels.NUMBERS.value, dtype=real, device=self.device),
            "packed": self.packed,
            "lr_tensor": lr if on_device else None,
            "grad_scale": amp.grad_scale,
            "found_inf": amp.found_inf,
            "MAXIMIZE": amp.maximize,
            "EXACT": ball.exact,
            "L2": ball.norm == "l2",
            "RULE": getattr(kernels, _rule(layers, base)).value,
            **{name: float(value) for name, value in numbers.items()},
            **{name: getattr(kernels.tl, str(dtype).removeprefix("torch.")) for name, dtype in types.items()},
        }

    def launch(self, *names: str) -> None:
        """Of each kernel a program for each row, or for each layer."""
        # Where to fuse into fma is said in the kernels, so that W' - W0 and W0 + s c come out the same in each of them;
        # to name it also keeps triton from warning that its default will change.
        options = {"num_warps": 8, "enable_fp_fusion": False}
        for kernel in (getattr(self.kernels, name) for name in names):
            programs = len(self.owners if "owners" in kernel.arg_names else self.packed)
            with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
                if programs:
                    kernel[(programs,)](**{x: self.arguments[x] for x in kernel.arg_names}, **options)


def table(layers: Layers, base: AdamW | SGD | None, rows: tuple[int, ...]) -> Tensor:
    """A line a layer: addresses of the columns of :class:`Layers`, the moments as three, then the sizes.

    The moments are m or b, v, and max v. An empty tensor's address is 0.
    """
    moments = [] if base is None else layers.moments
    columns = [*layers[:-1], *[*moments, [], [], []][:3]]
    addresses = [[x.data_ptr() for x in column] or [0] * len(rows) for column in columns]
    count = torch.tensor(rows, device="cpu")
    cols = torch.tensor([w.numel() for w in layers.weights], device="cpu") // count.clamp(min=1)
    return torch.stack([*map(torch.tensor, addresses), count, cols, count.cumsum(0) - count], dim=1)


def _rows(w: Tensor, radius: Tensor, ball: Ball) -> int:
    is_one = w.ndim < 2 or (ball.norm == "l2" and radius.numel() > 0)
    return 1 if is_one else w.shape[0]


def _rule(layers: Layers, base: AdamW | SGD | None) -> str:
    if base is None:
        return "NOTHING"
    if isinstance(base, AdamW):
        return "AMSGRAD" if len(layers.moments) > 2 else "ADAMW"
    if not layers.moments:
        return "SGD"
    return "NESTEROV" if base.nesterov else "MOMENTUM"


@lru_cache(16)
def _owners(rows: tuple[int, ...], device: torch.device, stream: int) -> Tensor:
    """The layer of each row. Each stream has its own: another one may read before the numbers are there."""
    return _sent(
        torch.arange(len(rows), dtype=torch.int32, device="cpu").repeat_interleave(torch.tensor(rows, device="cpu")),
        device,
    )


def _stream(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def _sent(values: Tensor, device: torch.device) -> Tensor:
    """To the device, without waiting for it."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values
