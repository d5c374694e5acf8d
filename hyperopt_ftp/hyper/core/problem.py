"""The inner problem: an optimizer and its training loss, one step of them as a pure function, and the plain loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ...dtensors import like
from ...types import Params, State, UpdateFn
from .inputs import TrainInputs, TrainOutputs
from .leaves import detached
from .transforms import under_transform


class Gradient(NamedTuple):
    """A training gradient, with its graph if that was asked for."""

    loss: Tensor
    grads: list[Tensor]
    params: list[Tensor]  # what it was taken in
    rebuild: Callable[[Sequence[Tensor]], Params]  # a tree of such a list


@dataclass(frozen=True)
class InnerProblem:
    """K steps: ``params, state <- update_fn(d train_loss(params, batch[, hparams["loss"]]) / d params, ...)``.

    Attributes:
        update_fn: of a pure optimizer.
        train_loss: ``train_loss(params, batch) -> scalar``, or with a third argument if hparams has ``"loss"``.
        needs_grad: for every tensor of the inputs, whether a derivative in it is asked for. ``False`` for batches that
            are not a list or tuple.
        agreed: makes the numbers that a decision depends on the same on all processes, which recompute steps together.
        before_step: called with params, batch and hparams before each step of :meth:`step`.
        during_gradient: a context for the backward pass of :meth:`gradient`, made from the params given to the loss.
        made: gives the bytes of all tensors that the training loss makes in a step.
    """

    update_fn: UpdateFn[Any]
    train_loss: Callable[..., Tensor]
    needs_grad: TrainInputs
    agreed: Callable[[Sequence[int]], list[int]] = list
    before_step: Callable[[Params, Any, dict[str, Any]], None] | None = None
    during_gradient: Callable[[list[Tensor]], AbstractContextManager[Any]] = nullcontext
    made: Callable[[], int] = int
    _bare: InnerProblem | None = None

    @property
    def bare(self) -> InnerProblem:
        """The problem without checks, for steps that are recomputed."""
        return self._bare or self

    @cached_property
    def asks_batches(self) -> bool:
        return any(tree.leaves(self.needs_grad.batches))

    def batch_needs_grad(self, k: int) -> Any:
        asked = self.needs_grad.batches
        return asked[k] if isinstance(asked, (list, tuple)) else False

    def loss(self, params: Params, batch: Any, hparams: dict[str, Any]) -> Tensor:
        return loss_at(self.train_loss, params, batch, hparams)

    def update(self, grads: Params, state: State, params: Params, hparams: dict[str, Any]) -> tuple[Params, State]:
        return self.update_fn(grads, state, params, without_loss(hparams))

    def step(self, params: Params, state: State, batch: Any, hparams: dict[str, Any]) -> tuple[Params, State, Tensor]:
        """One step and its training loss: in grad mode, or under ``torch.func``, differentiable in all arguments."""
        if self.before_step:
            self.before_step(params, batch, hparams)
        if under_transform():
            grads, loss = torch.func.grad_and_value(self.loss)(params, batch, hparams)
        else:
            found = self.gradient(params, batch, hparams, graph=torch.is_grad_enabled())
            grads, loss = found.rebuild(found.grads), found.loss
        params, state = self.update(grads, state, params, hparams)
        return params, state, loss

    def loop(self, inputs: TrainInputs) -> TrainOutputs:
        """The plain loop: differentiable under a transform or in grad mode, else without a graph."""
        hparams, params, state, batches = inputs
        losses = []
        for k in range(len(batches)):  # a sequence of somebody's own may not know where it ends
            params, state, loss = self.step(params, state, batches[k], hparams)
            losses.append(loss.detach())
        return TrainOutputs(params, state, torch.stack(losses))

    def gradient(self, params: Params, batch: Any, hparams: dict[str, Any], graph: bool = False) -> Gradient:
        """The training gradient, not under a transform.

        ``graph``: with a graph, for derivatives in what requires grad of the arguments. What does not, of the params,
        is taken at new leaves.
        """
        rows, rebuild = tree.flatten(params)
        batch = batch if graph else detached(batch)  # which the loss may let require grad
        with torch.enable_grad():
            # Aliases: one param may be made of another, and its derivative is to be partial.
            at = [x.view_as(x) if graph and x.requires_grad else x.detach().requires_grad_() for x in rows]
            loss = self.loss(rebuild(at), batch, hparams)
            with self.during_gradient(at):
                grads = torch.autograd.grad(loss, at, create_graph=graph, allow_unused=True)
            grads = _filled(grads, at)  # with a graph too, where shards are laid out anew
        return Gradient(loss if graph else loss.detach(), grads, at, rebuild)


def loss_at(train_loss: Callable[..., Any], params: Params, batch: Any, hparams: dict[str, Any]) -> Any:
    return train_loss(params, batch, *((hparams["loss"],) if "loss" in hparams else ()))


def without_loss(hparams: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in hparams.items() if name != "loss"}


def no_graph() -> ValueError:
    return ValueError(
        "train_loss returned a loss without a graph: it does not depend on the params, or was detached from them "
        "(detach, no_grad, item, inference mode), so nothing would be trained"
    )


def _filled(grads: Sequence[Tensor | None], leaves: Sequence[Tensor]) -> list[Tensor]:
    """Gradients, zeros for leaves that the loss does not depend on."""
    if all(g is None for g in grads):
        raise no_graph()
    return [torch.zeros_like(x) if g is None else like(g, x) for g, x in zip(grads, leaves, strict=True)]
