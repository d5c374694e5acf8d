"""What FTP's classes share: learned balls around the anchors, and the work that an execution is given."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..ftp import GRADIENTS
from ..hparams import check_choice
from ..kernels import sharded
from ..kernels.layers import NOTHING, Ball, Layers
from ..optimizers.projected import first_radius
from ..projections import FLOOR, NORMS, row_norm
from ..tree import working
from .anchor_source import AnchorSource
from .anchored import Anchored
from .executions import pick

__all__ = ["Balls", "ball"]


class Balls(Anchored):
    """Keeps constrained parameters in learned balls around their anchors.

    State beside the anchor: ``deviation`` (c), ``row_norm`` (n), ``radius``, ``radius_exp_avg`` and
    ``radius_exp_avg_sq``, and ``radius_step``.
    """

    #: In the order of the columns of ``Layers``.
    HELD: ClassVar[tuple[str, ...]] = (
        "deviation",
        "row_norm",
        "radius",
        "radius_exp_avg",
        "radius_exp_avg_sq",
        "radius_step",
    )
    WHOLE: ClassVar[frozenset[str]] = frozenset({"deviation"})
    NUMBERS: ClassVar[tuple[str, ...]] = ("radius_lr", "kappa")
    COUNTS: ClassVar[frozenset[str]] = frozenset({"radius_step"})
    _OWN: ClassVar[frozenset[str]] = Anchored._OWN | {*HELD}

    def __init__(self, params: Any, defaults: dict[str, Any], anchor: AnchorSource, exclude: Any) -> None:
        self._unmeasured: list[tuple[Tensor, Tensor, str, Tensor]] = []  # weights, anchor, norm and first radius
        super().__init__(params, defaults, anchor, exclude)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._unmeasured = []
        super().__setstate__(state)

    def _pick(self, group: dict[str, Any]) -> str:
        return pick(group, strict=False)

    def _shapes(self, p: Tensor, group: dict[str, Any]) -> dict[str, torch.Size]:
        rows = p.shape[:1] if group["norm"] == "mars" and p.ndim >= 2 else torch.Size((1,))
        return {**super()._shapes(p, group), "row_norm": rows}

    def _spread(self, value: Tensor, p: Tensor, name: str, group: dict[str, Any]) -> Tensor:
        if name == "row_norm":
            return sharded.like(value, p, group.get("norm", "mars"), is_rows=True)
        return super()._spread(value, p, name, group)

    def _check_options(self, group: dict[str, Any]) -> None:
        check_choice("norm", group["norm"], NORMS)
        check_choice("gradient", group["gradient"], GRADIENTS)
        super()._check_options(group)

    def radii(self) -> dict[Any, float]:
        """Radius of each constrained parameter that has made a step, by name (or index), in units of row norm."""
        return self._held("radius")

    def _layers(self) -> list[tuple[dict[str, Any], str, Layers]]:
        """Each group, its execution, and its parameters that have a gradient. Every check comes before a change."""
        if not torch.compiler.is_compiling():
            self._check_step()
        executions = [self._pick(group) for group in self.param_groups]
        work = []
        for group, execution in zip(self.param_groups, executions, strict=True):
            columns: list[list[Tensor]] = [[] for _ in Layers._fields[:-1]]
            moments: list[list[Tensor]] = [[] for _ in self._moments(group)]
            self._init_group(group, *columns, *moments)
            if columns[0]:
                layers = Layers._make([*columns, moments])
                pairs = [_fitting(*row) for row in zip(layers.weights, layers.grads, layers.anchors, strict=True)]
                grads, anchors = ([pair[k] for pair in pairs] for k in range(2))
                work.append((group, execution, layers._replace(grads=grads, anchors=anchors)))
        if self._unmeasured:  # first radii of shards, all at once
            *far, radii = zip(*self._unmeasured, strict=True)
            torch._foreach_copy_(list(radii), sharded.largest_off(list(zip(*far, strict=True))))
            self._unmeasured.clear()
        if len(self._fitted) > sum(len(group["params"]) for group in self.param_groups):
            self._fitted.clear()  # of parameters that were swapped in for a while
        return work

    def _init_group(self, group: dict[str, Any], *columns: list[Tensor]) -> None:
        """Fill the columns of ``Layers``; first, make the state that a first step needs.

        torch.compile runs this method, which it knows by its name, when it traces a step, and guards what it returns.
        """
        names = group.get("param_names") or self._indices(group)
        moments = self._moments(group)
        on_gpu = bool(group["params"]) and group["params"][0].is_cuda
        device = "own" if group.get("capturable") or (on_gpu and self._pick(group) == "triton") else "cpu"
        for p, constrained, name in zip(group["params"], group["constrained"], names, strict=True):
            if p.grad is None:
                continue
            self._check_gradient(p, name)
            state = self._state_of(p)
            self._start(p, state, group, name, constrained)
            lean = group.get("lean", False)
            form = (p.shape, p.stride(), p.dtype, device, len(state), lean)
            if self._fitted.get(p) != form:
                self._fit(p, state, p.device if device == "own" else torch.device(device), lean)
                self._fitted[p] = form
            held = [state[key] if constrained else NOTHING for key in self.HELD]
            w0 = self._anchor.of(p, name, state) if constrained else NOTHING
            row = [p, p.grad, state.get("step", NOTHING), w0, *held, *(state[name] for name in moments)]
            for column, value in zip(columns, row, strict=True):
                column.append(value)

    def _fit(self, p: Tensor, state: dict[str, Any], place: torch.device, lean: bool) -> None:
        """Bring loaded state into the form that kernels need: working dtype, the weights' layout, counts in place.

        Checkpoints of torch's optimizers keep moments in the weights' dtype, and old ones plain numbers as steps; a
        model may have changed its memory format.
        """
        real, shape, strides = working(p.detach()).dtype, p.shape, p.stride()
        for key, value in state.items():
            if key in self.COUNTS:
                if not isinstance(value, Tensor) or value.dtype != torch.float32 or value.device != place:
                    state[key] = torch.as_tensor(value, dtype=torch.float32, device=place)
            elif isinstance(value, Tensor) and value.is_floating_point():
                dtype = torch.bfloat16 if lean and key == "deviation" else real
                if value.dtype != dtype and key in self._OWN and key != "anchor":
                    state[key] = value = value.to(dtype)
                # Also the base's own: torch's fused kernels take their layout for granted.
                if value.shape == shape and value.stride() != strides and type(p) in (Tensor, torch.nn.Parameter):
                    state[key] = _laid_out(value, p)

    def _moments(self, group: dict[str, Any]) -> tuple[str, ...]:
        """Keys of the base's state, in the order of ``Layers.moments``."""
        return ()

    def _start(self, p: Tensor, state: dict[str, Any], group: dict[str, Any], name: Any, constrained: bool) -> None:
        """The state that a parameter's first step needs. c = 0, so the first hypergradient is 0."""
        if constrained and "radius" not in state:
            w, norm = p.detach(), group["norm"]
            c = torch.zeros_like(working(w))
            self._anchor.start(p, name, state)
            w0 = self._anchor.of(p, name, state)
            if sharded.is_spread(p):
                n = sharded.spread_rows(p, FLOOR, norm, c.dtype)
                radius = torch.full((), FLOOR, dtype=c.dtype, device=sharded.local(p).device)
                if not self._anchor.is_start:
                    self._unmeasured.append((w, w0, norm, radius))
            else:
                n, radius = row_norm(c, norm), first_radius(w, w0 if w0.numel() else c, norm)
            zeros = (torch.zeros_like(radius), torch.zeros_like(radius), torch.zeros((), dtype=torch.float32))
            state.update(zip(self.HELD, (c, n, radius, *zeros), strict=True))
            if group.get("lean"):
                state["deviation"] = c.to(torch.bfloat16)


def ball(group: dict[str, Any]) -> Ball:
    radius_lr, kappa = (x.item() if isinstance(x, Tensor) else x for x in (group["radius_lr"], group["kappa"]))
    return Ball(radius_lr, kappa, group["norm"], group["gradient"] == "exact")


def _fitting(w: Tensor, grad: Tensor, w0: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient in the layout of the weights, and in their dtype or working precision; the anchor beside them."""
    grad = grad.resolve_neg()  # a lazy minus sign is not in memory
    if grad.dtype != w.dtype:
        grad = grad.to(working(w).dtype)
    if sharded.is_spread(w):
        grad = sharded.place(grad, w)
    elif grad.stride() != w.stride() and type(grad) is Tensor:
        grad = _laid_out(grad, w)
    if w0.dtype == torch.float64 != w.dtype:
        w0 = w0.float()  # the weights were float64 when they began
    if w0.device != w.device and w0.numel():
        w0 = w0.to(w.device, non_blocking=True)
    return grad, w0


def _laid_out(x: Tensor, w: Tensor) -> Tensor:
    """``x`` with the strides of ``w``: as it is where only dimensions of size 1 differ, else a copy."""
    pairs = zip(x.shape, x.stride(), w.stride(), strict=True)
    if all(size == 1 or mine == theirs for size, mine, theirs in pairs):
        return x.as_strided(w.shape, w.stride())
    return torch.empty_like(w, dtype=x.dtype, device=x.device).copy_(x)
