"""The drop-in classes that hold their base optimizer themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..kernels.layers import SGD, AdamW, Amp
from .anchor_source import AnchorSource
from .anchored import run_closure
from .balls import Balls, ball
from .checks import check_flags
from .executions import Part, alike, pick, step_

__all__ = ["Native", "number", "plain"]


class Native(Balls):
    """Base of :class:`FTPAdamW` and :class:`FTPSGD`: a step is one call of the picked execution."""

    COUNTS: ClassVar[frozenset[str]] = frozenset({"step", "radius_step", "momentum_start"})
    OPTIONS: ClassVar[tuple[str, ...]] = ("radius_lr", "kappa", "norm", "gradient", "lean")
    FLAGS: ClassVar[tuple[str, ...]] = ("maximize", "capturable", "lean")  #: group entries that must be bools

    def __init__(self, params: Any, defaults: dict[str, Any], exclude: Any, anchor: AnchorSource) -> None:
        super().__init__(params, defaults, anchor, exclude)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether a step unscales gradients itself, and does nothing where one is infinite (GradScaler asks)."""
        return all(self._pick(group) in ("fused_cpu", "triton") for group in self.param_groups)

    def _pick(self, group: dict[str, Any]) -> str:
        return pick(group, strict=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on every parameter that has a gradient.

        Args:
            closure: re-evaluates the model and returns the loss.

        Raises:
            RuntimeError: a sparse or complex gradient (before anything has changed).
        """
        if hasattr(self, "_accelerator_graph_capture_health_check"):  # capture needs capturable=True
            self._accelerator_graph_capture_health_check()
        else:
            self._cuda_graph_capture_health_check()  # torch 2.10
        loss = run_closure(closure)
        scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        if found_inf is not None and found_inf.device.type == "cpu" and found_inf.item():
            return loss  # not even the state of a first step
        work: dict[str, list[Part]] = {}
        for group, execution, layers in self._layers():
            self._ran[0] = execution
            for part in alike(layers):
                like = part.weights[0]
                amp = Amp(group["maximize"], _near(scale, like), _near(found_inf, like))
                work.setdefault(execution, []).append(Part(part, self._base(group, like), ball(group), amp))
        for execution, parts in work.items():
            step_(execution, parts)
        return loss

    def _check_options(self, group: dict[str, Any]) -> None:
        super()._check_options(group)
        check_flags(group, self.FLAGS, ("foreach", "fused"))
        if group["fused"] and group["foreach"]:
            raise RuntimeError("fused and foreach cannot both be True; choose one, or neither")
        if group["differentiable"] is not False:
            raise ValueError(
                f"differentiable must be False, got {group['differentiable']!r}: a step works in place; hft.ftp is the "
                "differentiable rule"
            )

    def _check_weights(self, group: dict[str, Any]) -> None:
        if group["fused"]:
            self._pick(group)
        if group["lean"]:
            narrow = [p.dtype for p in group["params"] if p.dtype != torch.float32]
            if narrow:
                raise ValueError(
                    f"lean=True keeps the deviation in bfloat16 and needs float32 weights, got {narrow[0]}; for 16-bit "
                    "weights the deviation is the master copy"
                )

    def _start(self, p: Tensor, state: dict[str, Any], group: dict[str, Any], name: Any, constrained: bool) -> None:
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32)
        super()._start(p, state, group, name, constrained)

    def _base(self, group: dict[str, Any], like: Tensor) -> AdamW | SGD:
        """The base's rule with the group's numbers."""
        raise NotImplementedError


def number(lr: float | Tensor, like: Tensor, capturable: bool) -> float | Tensor:
    """A tensor lr as a number where that costs no sync, else on the weights' device."""
    if not isinstance(lr, Tensor):
        return lr
    if torch.compiler.is_compiling() or capturable or lr.device.type != "cpu":
        return lr.to(like.device, non_blocking=True)
    return lr.item()


def plain(value: float | Tensor) -> float:
    """Numbers beside lr are Python's; a tensor is read, which waits for its device."""
    return value.item() if isinstance(value, Tensor) else value


def _near(value: Tensor | None, like: Tensor) -> Tensor | None:
    return None if value is None else value.to(like.device, non_blocking=True)
