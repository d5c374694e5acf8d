"""The drop-in classes that hold their base optimizer themselves: one step, in the execution that was picked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..types import Optimizer
from .anchored import Anchored, run_closure
from .layer import Layer, run_pure
from .multi_tensor import buckets, move_and_project

__all__ = ["Native", "number"]


class Native(Anchored):
    """Base of :class:`FTPAdamW` and :class:`FTPSGD`: a pure base optimizer, and the same as a foreach step."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on every parameter that has a gradient.

        Args:
            closure: re-evaluates the model and returns the loss.

        Raises:
            RuntimeError: a sparse or complex gradient (before anything has changed).
        """
        loss = run_closure(closure)
        for group, layers in self._layers():
            for layer in layers:
                self.state[layer.param] = layer.state
                self._start(layer, group)
                layer.state[self.STEP] += 1
            self.execution = self._pick_execution(group)
            if self.execution == "single":
                for layer in layers:
                    count = layer.state[self.STEP].to(torch.int64) - 1
                    base_state = self._pure_state(layer, count)
                    self._keep(layer, run_pure(self._pure_base(group), base_state, layer, count, group))
            else:
                for bucket in buckets(layers):
                    move_and_project(bucket, group, self._steps(bucket, group), partial(self._move, group))
        return loss

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        if group["fused"]:
            raise RuntimeError(
                f"fused=True: {type(self).__name__} has no fused execution yet; use fused=None (the best there is) or "
                "foreach=True"
            )

    def _pure_base(self, group: dict[str, Any]) -> Optimizer:
        """The base optimizer as a pure function, with the group's hyperparameters."""
        raise NotImplementedError

    def _pure_state(self, layer: Layer, count: Tensor) -> Any:
        """The base's state of one parameter, for ``_pure_base``."""
        raise NotImplementedError

    def _keep(self, layer: Layer, base_state: Any) -> None:
        """Write what ``_pure_base`` made of the base's state back."""
        raise NotImplementedError

    def _move(
        self,
        group: dict[str, Any],
        weights: list[Tensor],
        grads: list[Tensor],
        layers: list[Layer],
        steps: Sequence[Any],
    ) -> None:
        """The base's foreach step on working weights, in place."""
        raise NotImplementedError


def number(lr: float | Tensor, like: Tensor, capturable: bool) -> float | Tensor:
    """A tensor lr as a number where that costs no sync, else on the weights' device."""
    if not isinstance(lr, Tensor):
        return lr
    return lr.item() if lr.device.type == "cpu" and not capturable else lr.to(like.device, non_blocking=True)
