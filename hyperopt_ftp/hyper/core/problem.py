"""The inner problem: an optimizer and its training loss, one step of them as a pure function, and the plain loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from operator import attrgetter
from types import NoneType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ...dtensors import in_layout_of
from ...types import Optimizer, Params, State
from .carry import carry_of
from .graph import ends_below
from .inputs import TrainInputs, TrainOutputs
from .leaves import detached, is_float, requiring_grad
from .second_order import twice_differentiable
from .torch_private import differentiated, run_backward, tracked, under_transform

_REQUIRES_GRAD = attrgetter("requires_grad")
_NOTHING = TrainInputs(False, False, False, False)


class Gradient(NamedTuple):
    """A training gradient, with its graph if that was asked for."""

    loss: Tensor
    grads: Sequence[Tensor]
    params: list[Tensor]  # what it was taken in
    rebuild: Callable[[Sequence[Tensor]], Params]  # a tree of such a list


class Guards(NamedTuple):
    """What looks at the loss and the update of a problem, whose train_loss is a guarded one.

    Attributes:
        unguarded: the problem without checks, for steps that are recomputed.
        verdict: what they have found, :class:`~hyperopt_ftp.hyper.guards.verdict.Verdict`.
        update: gives an update with checks.
        before_step: is called with params, batch and hparams before each step of the plain loop.
        during_gradient: a context for the backward pass of a gradient where the loss puts hooks on what it saves, made
            from the tensors that the gradient is taken in.
        own_leaves: tensors that the last call of the loss has made require grad itself.
    """

    unguarded: InnerProblem
    verdict: Any
    update: Callable[[Any], Any]
    before_step: Callable[[Params, Any, dict[str, Any]], None] | None
    during_gradient: Callable[[list[Tensor]], AbstractContextManager[Any]]
    own_leaves: Callable[[], list[Tensor]]


@dataclass(eq=False)  # one that is frozen takes three times as long to make
class InnerProblem:
    """K steps: ``params, state <- optimizer.update(d train_loss(params, batch[, hparams["loss"]]) / d params, ...)``.

    Attributes:
        optimizer: a pure one.
        train_loss: ``train_loss(params, batch) -> scalar``, or with a third argument if hparams has ``"loss"``.
        needs_grad: for every tensor of the inputs, whether a derivative in it is asked for: what a node has to know.
            ``False`` for batches that are not a list or tuple.
        alone: whether params and loss are of this process alone; else autograd may not own the graph of a training.
        agreed: makes the numbers that a decision depends on the same on all processes, which recompute steps together.
        refuse_shards: called with the name of a strategy that cannot differentiate in shards of batches.
        guard: gives the problem with guards, for such inputs and needs.
        guards: of loss and update; ``None``: nothing is looked at.
        before: number of steps that have been made before, whose graphs or points are kept too.
        again: calls a function, in a pullback with the random state in which training began.
    """

    optimizer: Optimizer
    train_loss: Callable[..., Tensor]
    needs_grad: TrainInputs = _NOTHING
    alone: bool = True
    agreed: Callable[[Sequence[int]], list[int]] = list
    refuse_shards: Callable[[str], None] = lambda name: None
    guard: Callable[[InnerProblem, TrainInputs, dict[str, bool]], InnerProblem] = lambda problem, inputs, needs: problem
    guards: Guards | None = None
    before: int = 0
    again: Callable[[Callable[[], Any]], Any] = lambda function: function()

    @property
    def unguarded(self) -> InnerProblem:
        """The problem without checks, for steps that are recomputed."""
        return self.guards.unguarded if self.guards else self

    def guarded(self, inputs: TrainInputs, **needs: bool) -> InnerProblem:
        """The problem with checks for what is asked of it, see :class:`~hyperopt_ftp.hyper.guards.verdict.Needs`."""
        return self.guard(self.unguarded, inputs, needs)

    def asking(self, needs_grad: TrainInputs) -> InnerProblem:
        return replace(self.unguarded, needs_grad=needs_grad)

    def begun(self, inputs: TrainInputs) -> TrainInputs:
        """The inputs with a state."""
        if inputs.state is not None:
            return inputs
        return inputs._replace(state=self.optimizer.init(inputs.params, without_loss(inputs.hparams)))

    def loop(self, inputs: TrainInputs) -> TrainOutputs:
        """The plain loop: differentiable under a transform or in grad mode, else without a graph."""
        return self.again(lambda: PlainLoop(self, inputs).run().end())

    @cached_property
    def asks_batches(self) -> bool:
        return any(tree.leaves(self.needs_grad.batches))

    def batch_needs_grad(self, k: int) -> Any:
        asked = self.needs_grad.batches
        return asked[k] if isinstance(asked, (list, tuple)) else False

    def loss(self, params: Params, batch: Any, hparams: dict[str, Any]) -> Tensor:
        return self.again(lambda: loss_at(self.train_loss, params, batch, hparams))

    def update(self, grads: Params, state: State, params: Params, hparams: dict[str, Any]) -> tuple[Params, State]:
        return self.guarded_update(grads, state, params, without_loss(hparams))

    @cached_property
    def guarded_update(self) -> Any:
        update = self.optimizer.update
        return self.guards.update(update) if self.guards else update

    def step(self, params: Params, state: State, batch: Any, hparams: dict[str, Any]) -> tuple[Params, State, Tensor]:
        """One step and its training loss: in grad mode, or under ``torch.func``, differentiable in all arguments."""

        def one() -> tuple[Params, State, Tensor]:
            loop = PlainLoop(self, TrainInputs(hparams, params, state, [batch]))
            loss = loop.step(batch)
            return *loop.end()[:2], loss

        return self.again(one)

    def gradient(self, params: Params, batch: Any, hparams: dict[str, Any], graph: bool = False) -> Gradient:
        """The training gradient, not under a transform.

        ``graph``: with a graph, for derivatives in what requires grad of the arguments. What does not, of the params,
        is taken at new leaves.
        """
        rows, rebuild = tree.flatten(params)
        batch = batch if graph else detached(batch)  # which the loss may let require grad
        with torch.enable_grad():
            at = aliases(rows, graph)
            loss = self.loss(rebuild(at), batch, hparams)
            grads = self.gradient_of(loss, at, graph)  # with a graph too, where shards are laid out anew
        return Gradient(loss if graph else loss.detach(), grads, at, rebuild)

    def gradient_of(self, loss: Tensor, at: list[Tensor], graph: bool) -> Sequence[Tensor]:
        guards = self.guards
        with guards.during_gradient(at) if guards and guards.verdict.has_hooks else nullcontext():
            grads = run_backward([loss], at, [torch.ones_like(loss)], graph, graph)
        return filled(grads, at) if not self.alone or NoneType in map(type, grads) else grads


def loss_at(train_loss: Callable[..., Any], params: Params, batch: Any, hparams: dict[str, Any]) -> Any:
    return train_loss(params, batch, *((hparams["loss"],) if "loss" in hparams else ()))


def without_loss(hparams: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in hparams.items() if name != "loss"} if "loss" in hparams else hparams


def no_graph() -> ValueError:
    return ValueError(
        "train_loss returned a loss without a graph: it does not depend on the params, or was detached from them "
        "(detach, no_grad, item, inference mode), so nothing would be trained"
    )


def aliases(rows: Sequence[Tensor], graph: bool) -> list[Tensor]:
    """What a gradient is taken in: it is to be partial, though one param may be made of another, or be in the batch."""
    return [x.view_as(x) if graph and x.requires_grad else x.detach().requires_grad_() for x in rows]


def filled(grads: Sequence[Tensor | None], leaves: Sequence[Tensor]) -> list[Tensor]:
    """Gradients, zeros for leaves that the loss does not depend on."""
    if all(g is None for g in grads):
        raise no_graph()
    return [torch.zeros_like(x) if g is None else in_layout_of(g, x) for g, x in zip(grads, leaves, strict=True)]


class PlainLoop:
    """The steps of a training, one after the other: differentiable in grad mode, or under ``torch.func``.

    Attributes:
        problem: of which the guards may be exchanged between two steps.
        k: steps done.
        losses: of these steps, without a graph.
    """

    def __init__(self, problem: InnerProblem, inputs: TrainInputs, first_order: bool = False) -> None:
        """``first_order``: training gradients are constants, and updates alone are differentiated."""
        self.problem: InnerProblem = problem
        self._first_order = first_order
        self.k: int = 0
        self.losses: list[Tensor] = []
        self._hparams, self._batches = inputs.hparams, inputs.batches
        hparams, update = without_loss(inputs.hparams), problem.guarded_update
        self._carry = carry_of(problem.optimizer, inputs.params, inputs.state, hparams, update, len(self._batches))
        self._at, self._state = self._carry.begin()
        self._own = (inputs.hparams["loss"],) if "loss" in inputs.hparams else ()
        self._asked = bool(requiring_grad(self._own))

    def run(self, to: int | None = None) -> PlainLoop:
        """Steps up to number ``to``; ``None``: all."""
        for k in range(self.k, len(self._batches) if to is None else to):  # a sequence may not know where it ends
            self.step(self._batches[k])
        return self

    def detach(self) -> PlainLoop:
        """What has been done so far counts as constant."""
        self._at, self._state = tree.map_tree(
            lambda x: x.detach() if isinstance(x, Tensor) else x, (self._at, self._state)
        )
        return self

    @property
    def has_graph(self) -> bool:
        return any(map(_REQUIRES_GRAD, self._at))

    def end(self) -> TrainOutputs:
        if not self.losses:
            raise ValueError("a strategy asks for a training without steps: inputs.batches must have one or more")
        losses = torch.stack(self.losses) if self.k > 1 else self.losses[0].reshape(1)
        return TrainOutputs(*self._carry.end(self._at, self._state), losses)

    def step(self, batch: Any) -> Tensor:
        """One step, and its loss."""
        guards = self.problem.guards
        if guards and guards.before_step:
            guards.before_step(self._carry.params(self._at), batch, self._hparams)
        if under_transform():
            at = [x.detach() for x in self._at] if self._first_order else self._at
            grads, loss = torch.func.grad_and_value(self._loss)(at, batch)
            grads = [g.detach() for g in grads] if self._first_order else grads
        elif torch.is_grad_enabled() and not self._first_order:
            grads, loss = self._gradient(batch, graph=True)
        else:
            with torch.enable_grad():
                grads, loss = self._gradient(batch, graph=False)
        self._at, self._state = self._carry.update(self._at, grads, self._state)
        self.losses.append(loss.detach())
        self.k += 1
        return loss

    def _loss(self, at: list[Tensor], batch: Any) -> Tensor:
        return self.problem.train_loss(self._carry.params(at), batch, *self._own)

    def _gradient(self, batch: Any, graph: bool) -> tuple[Sequence[Tensor], Tensor]:
        at = self._at
        live = graph and self.has_graph
        verdict = self.problem.guards.verdict if self.problem.guards else None
        known = verdict is not None and verdict.loss and not verdict.makes_leaves
        visible = known and verdict is not None and not verdict.captures  # all that the loss may depend on
        apart = live and self._carry.apart and (self.k > 0 or (visible and self._are_alone(at, batch)))
        if not apart:
            at = aliases(at, live)
        # Else the loss may let its batch require grad, which is not the caller's then.
        batch, alike = (batch, []) if known else _aliased(batch)
        loss = self._loss(at, batch)
        if graph and not live:
            live = self._asked or (bool(requiring_grad(batch)) if visible else self._depends(loss, at, alike))
        return self.problem.gradient_of(loss, at, live), loss if live else loss.detach()  # whose graph is freed

    def _are_alone(self, at: list[Tensor], batch: Any) -> bool:
        """Whether params are leaves that a loss gets in one place only, so that a gradient in them is partial."""
        leaves = {id(x) for x in at if x.is_leaf and not x._backward_hooks}
        return len(leaves) == len(at) and not (self._asked or requiring_grad(batch))

    def _depends(self, loss: Tensor, at: list[Tensor], alike: list[Tensor]) -> bool:
        """Whether a loss depends on anything with a derivative but params, and leaves that it has made itself."""
        known = {id(x) for x in (*at, *alike, *(self.problem.guards.own_leaves() if self.problem.guards else ()))}
        return not known.issuperset(map(id, ends_below([loss.grad_fn], ())))


def _aliased(batch: Any) -> tuple[Any, list[Tensor]]:
    """A batch that the loss may let require grad, and its tensors that do not yet."""
    rows, rebuild = tree.flatten(batch)
    alike: list[Tensor] = []
    for i, x in enumerate(rows):
        if is_float(x) and not x.requires_grad:
            rows[i] = x.detach()
            rows[i].__dict__.update(x.__dict__)  # attributes that it was given
            alike.append(rows[i])
    return rebuild(rows), alike


def has_derivative(inputs: TrainInputs) -> bool:
    """Whether a derivative may be asked for, in any input."""
    if under_transform():
        return any(is_float(x) and tracked(x) and differentiated(x) for x in tree.leaves(inputs))
    return torch.is_grad_enabled() and any(map(requiring_grad, inputs))


def differentiable_steps(
    problem: InnerProblem, inputs: TrainInputs, steps: Callable[[InnerProblem, TrainInputs], Any] = InnerProblem.loop
) -> Any:
    """Steps, by default the plain loop, with settings and checks for a derivative of them if one is asked for."""
    derived = has_derivative(inputs)
    with twice_differentiable() if derived or under_transform() else nullcontext():
        return steps(problem.guarded(inputs, derived=derived, closed=False), inputs)
