"""The steps that are differentiated: an optimizer, its training loss, and one step of them as a pure function."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import tree
from ..dtensors import is_dtensor, like, settled
from ..types import Optimizer, Params, State
from .arguments import check_scalar, loss_at, without_loss
from .data_parallel import DataParallel, agreed
from .first_update import kind_of_update, looked_at
from .functorch import level_of, top_level, under_transform
from .leaves import Row, fresh, refill
from .mutation import NewHooks, no_new_hooks, refuse_mutation, refuse_other_weights, unwritten
from .numbers import refuse_numbers
from .rng import Recorder, RngState
from .second_order import twice_differentiable
from .sharded import of_whole
from .strangers import (
    Stranger,
    own_leaves,
    refuse_once,
    refuse_outer_tensors,
    refuse_own_backwards,
    refuse_strangers,
    stranger,
)
from .strategy import Start, Trained

#: Updates of each kind that are looked at: the state that the first one gets is made by init.
LOOKS = 2


class Gradient(NamedTuple):
    """A training gradient at leaves of its own, with its graph where that was asked for."""

    loss: Tensor
    grads: list[Tensor]
    params: list[Tensor]  # the leaves; all of the params
    batch: list[Tensor]  # the leaves; those of the batch that are wanted


@dataclass
class Seen:
    """What the training loss and the update have been seen to do by looking at each of their operations."""

    graphs: set[int] = field(default_factory=set)  # of the loss, by the numbers that refuse_strangers gives
    outside: dict[int, Tensor] = field(default_factory=dict)  # what it uses beside its arguments
    has_hooks: bool = False  # on what is saved for the backward pass
    bytes: int = 0  # of all tensors that it has made in a step
    makes_leaves: bool = False  # it lets tensors require grad itself
    updates: Counter[str] = field(default_factory=Counter)  # of the optimizer that have been looked at, by kind


@dataclass(frozen=True)
class Steps:
    """K steps: ``params, state <- optimizer.update(d train_loss(params, batch[, hparams["loss"]]) / d params, ...)``.

    Attributes:
        optimizer: a pure optimizer.
        train_loss: ``train_loss(params, batch) -> scalar``, or with a third argument where hparams has ``"loss"``.
        wanted: in place of every tensor of the start, whether a derivative in it is asked for. ``False`` in the place
            of batches that are not a list or tuple.
        derived: whether anything is differentiated at all; if not, the loss may write and use any kernel.
        looked_at: whether a loss that uses what requires grad and is no argument is refused.
        apart: whether the steps run inside an ``autograd.Function``, with the transforms around it switched off.
        seen: what the loss has been seen to do so far.
    """

    optimizer: Optimizer
    train_loss: Callable[..., Tensor]
    wanted: Start
    derived: bool = True
    looked_at: bool = True
    apart: bool = False
    seen: Seen = field(default_factory=Seen, compare=False, repr=False)

    @property
    def _local_loss(self) -> Callable[..., Tensor]:
        return self.train_loss.loss if isinstance(self.train_loss, DataParallel) else self.train_loss

    def agreed(self, numbers: Sequence[int]) -> list[int]:
        """Numbers that a decision depends on, as all processes have them: who makes a step again needs the others."""
        return agreed(self.train_loss, numbers)

    def refuse_shards(self, who: str) -> None:
        """Raise where a derivative in a batch is wanted of which other processes have other parts."""
        if isinstance(self.train_loss, DataParallel) and any(tree.leaves(self.wanted.batches)):
            raise ValueError(
                f"{who} cannot differentiate in the shards of data_parallel, which differ from process to process; "
                "take hft.Unroll(), or put what is tuned into hparams['loss'], the same on all processes"
            )

    def wanted_batch(self, k: int) -> Any:
        """What is wanted of the batch of step k."""
        wanted = self.wanted.batches
        return wanted[k] if isinstance(wanted, (list, tuple)) else False

    def step(self, params: Params, state: State, batch: Any, hparams: dict[str, Any]) -> tuple[Params, State, Tensor]:
        """One step and its training loss, differentiable in all arguments, under ``torch.func`` and without."""
        if under_transform():
            if self.apart:
                self._look_for_strangers(params, batch, hparams)
            grads, loss = torch.func.grad_and_value(self._loss_at)(params, batch, hparams)
        else:
            leaves, rebuild = tree.flatten(params)
            with torch.enable_grad():
                # Aliases: one param may be made of another, and its derivative is to be partial.
                leaves = [x.view_as(x) if x.requires_grad else x.detach().requires_grad_() for x in leaves]
                loss = self._loss_at(rebuild(leaves), batch, hparams)
                grads = rebuild(_grad(loss, leaves, create_graph=True))
        params, state = self.update(grads, state, params, hparams)
        return params, state, loss

    def loop(self, start: Start) -> Trained:
        """The plain loop: differentiable under a transform or where grad mode is on, else without any graph."""
        params, state, losses = start.params, start.state, []
        graph = under_transform() or torch.is_grad_enabled()
        for k in range(len(start.batches)):  # a sequence of somebody's own may not know where it ends
            batch = start.batches[k]
            if graph:
                params, state, loss = self.step(params, state, batch, start.hparams)
            else:
                found = self.gradient(params, batch, start.hparams)
                params, state = self.update(refill(params, found.grads), state, params, start.hparams)
                loss = found.loss
            losses.append(loss.detach())
        return Trained(params, state, torch.stack(losses))

    def gradient(
        self, params: Params, batch: Any, hparams: dict[str, Any], wanted_batch: Any = False, *,
        graph: bool = False, again: bool = False,
    ) -> Gradient:  # fmt: skip
        """The training gradient at new leaves. Not under a transform.

        Args:
            params: at which point.
            batch: of this step; ``wanted_batch`` says which of its tensors are new leaves as well.
            hparams: their tensors that require grad are leaves, made by :func:`fresh`.
            graph: keep the graph, for derivatives of the gradient in all of these leaves.
            again: the step has been made before, and what its loss does was looked at then.
        """
        leaves, at = fresh(params)
        if self.derived and not again:
            check_constant(batch, wanted_batch)
        extra, batch = fresh(batch, wanted_batch)
        known = [*leaves, *extra, *_knobs(hparams)]
        local = self._local_at if again or not self.looked_at else partial(self._looked_at, known)
        with torch.enable_grad():
            loss = self._whole(local, at, batch, hparams)
            with refuse_other_weights(known) if self.seen.has_hooks and not again else nullcontext():
                grads = _grad(loss, leaves, create_graph=graph)
        return Gradient(loss if graph else loss.detach(), grads, leaves, extra)

    def _whole(self, local: Callable[..., Tensor], params: Params, batch: Any, hparams: dict[str, Any]) -> Tensor:
        """The loss by ``local(params, batch, hparams)``, which may look twice: what other processes need not know."""
        if not isinstance(self.train_loss, DataParallel):
            with of_whole(params, "train_loss"):
                return local(params, batch, hparams)

        def shard(params: Params, batch: Any, *own: Any) -> Tensor:
            return local(params, batch, {**hparams, "loss": own[0]} if own else hparams)

        return loss_at(partial(self.train_loss.whole, shard), params, batch, hparams)

    def _looked_at(self, known: list[Tensor], params: Params, batch: Any, hparams: dict[str, Any]) -> Tensor:
        """The loss, or an error where it does what a derivative through it cannot allow.

        Each operation is looked at in the first step, and again where the loss has another graph. In the other steps it
        is enough to see that nothing has been written into; but where a hparam of the loss is wanted, whose number it
        could take without a trace.
        """
        recorder = Recorder()
        rng = recorder.now()
        try:
            with own_leaves() if self.seen.makes_leaves else nullcontext() as own:
                return self._watched(known, params, batch, hparams, own, recorder, rng)
        except Stranger:
            if self.seen.makes_leaves:
                raise
        self.seen.makes_leaves = True  # the loss may have let it require grad itself: look once more
        for x in tree.leaves(batch):
            if isinstance(x, Tensor) and x.requires_grad and not any(x is leaf for leaf in known):
                x.requires_grad_(False)  # as it was
        recorder.rewind(rng)
        return self._looked_at(known, params, batch, hparams)

    def _watched(
        self, known: list[Tensor], params: Params, batch: Any, hparams: dict[str, Any], own: own_leaves | None,
        recorder: Recorder, rng: RngState,
    ) -> Tensor:  # fmt: skip
        seen, tensors, knobs = self.seen, [x for x in tree.leaves(batch) if isinstance(x, Tensor)], _knobs(hparams)

        def graph_of(loss: Tensor) -> int:
            return refuse_strangers(loss, known if own is None else [*known, *own.found])

        with refuse_outer_tensors() if self.apart else nullcontext():
            if not self.derived:
                loss = self._local_at(params, batch, hparams)
                graph_of(loss)
                return loss
            if seen.graphs and not any(tree.leaves(self.wanted.hparams.get("loss", False))):
                # Hooks on what is saved leave no trace in the graph.
                with suppress(NewHooks), nullcontext() if seen.has_hooks else no_new_hooks():
                    with unwritten([*seen.outside.values(), *tensors]):
                        loss = self._local_at(params, batch, hparams)
                    if graph_of(loss) in seen.graphs:
                        return loss
                recorder.rewind(rng)
            with refuse_mutation(knobs, arguments=[*known, *tensors]) as watch, refuse_numbers(knobs, known):
                loss = self._local_at(params, batch, hparams)
            graph = graph_of(loss)
            refuse_once(loss, tree.leaves(params))
        seen.graphs.add(graph)
        seen.outside |= watch.outside
        seen.has_hooks |= watch.has_hooks
        seen.bytes = max(seen.bytes, watch.bytes)
        return loss

    def look(
        self, params: Params, state: State, batch: Any, hparams: dict[str, Any], wanted_batch: Any = False
    ) -> None:
        """Raise where the loss or the update of a step that runs as a compiled program does what it may not."""
        self.seen.graphs.clear()  # what another program does may leave no trace in the graph
        recorder = Recorder()
        own = fresh(hparams, self.wanted.hparams)[1]
        with twice_differentiable():
            found = recorder.again(recorder.now(), lambda: self.gradient(params, batch, own, wanted_batch, graph=True))
        refuse_own_backwards(found.loss)
        if self.seen.updates["plain"] < LOOKS:
            grads = refill(params, [g.detach() for g in found.grads])
            with torch.no_grad():
                recorder.again(recorder.now(), lambda: self.update(grads, state, params, own))

    def update(self, grads: Params, state: State, params: Params, hparams: dict[str, Any]) -> tuple[Params, State]:
        update, own = self.optimizer.update, without_loss(hparams)
        kind = kind_of_update()
        if self.looked_at and self.seen.updates[kind] < LOOKS:
            new, state = looked_at(update, grads, state, params, own, self.derived, self.apart)
            self.seen.updates[kind] += 1
        else:
            new, state = update(grads, state, params, own)
        if not any(map(is_dtensor, tree.leaves(params))):
            return new, state
        return tree.map_tree(like, new, params), tree.map_tree(settled, state)

    def _loss_at(self, params: Params, batch: Any, hparams: dict[str, Any]) -> Tensor:
        loss = self._whole(self._local_at, params, batch, hparams)
        if self._curved:
            refuse_once(loss)
        return loss

    @cached_property
    def _curved(self) -> bool:
        """Whether a derivative through the training gradient may be asked for; under vmap alone it is not."""
        return any(tree.leaves(self.wanted))

    def _local_at(self, params: Params, batch: Any, hparams: dict[str, Any]) -> Tensor:
        with twice_differentiable() if self.derived else nullcontext():
            loss = check_scalar("train_loss", loss_at(self._local_loss, params, batch, hparams))
        if not _tracked_here(loss):
            raise ValueError(_NO_GRAPH)
        return loss

    def _look_for_strangers(self, params: Params, batch: Any, hparams: dict[str, Any]) -> None:
        """An evaluation of the loss at the level of the step itself, where tensors from further out stand out."""
        recorder = Recorder()
        with refuse_outer_tensors(leaves_too=True), twice_differentiable(), torch.no_grad():
            recorder.again(recorder.now(), lambda: loss_at(self._local_loss, params, batch, hparams))


def _knobs(hparams: dict[str, Any]) -> list[Tensor]:
    return [x for x in tree.leaves(hparams) if isinstance(x, Tensor) and x.requires_grad]


def check_constant(batch: Any, wanted: Any) -> None:
    """Raise where a batch of a sequence of somebody's own, of which nothing can be wanted, requires grad."""
    if wanted is not False:
        return
    for x in tree.leaves(batch):
        if isinstance(x, Tensor) and x.requires_grad:
            raise ValueError(f"{stranger(x, 'a sequence of batches that is no list')}; or pass a list")


_NO_GRAPH = (
    "train_loss returned a loss without a graph: it does not depend on the params, or was detached from them (detach, "
    "no_grad, item, inference mode), so nothing would be trained"
)


def _tracked_here(loss: Tensor) -> bool:
    """Whether a loss depends on what the innermost gradient is taken in."""
    return level_of(loss) == top_level() if under_transform() else loss.requires_grad


def _grad(loss: Tensor, leaves: list[Tensor], create_graph: bool) -> list[Tensor]:
    with twice_differentiable():  # what a checkpoint computes again is computed alike
        grads = torch.autograd.grad(loss, leaves, create_graph=create_graph, allow_unused=True)
    if all(g is None for g in grads):
        raise ValueError(_NO_GRAPH)
    return [torch.zeros_like(x) if g is None else like(g, x) for g, x in zip(grads, leaves, strict=True)]


def pull(
    outputs: Sequence[Tensor], cotangents: Sequence[Tensor | None], inputs: Sequence[Tensor], *,
    again: bool = False, rows: bool = False, graph: bool = False,
) -> Row:  # fmt: skip
    """Vector-Jacobian product; ``None`` is zero. Through a graph in 16 bits cotangents go scaled by a power of two.

    Args:
        outputs, cotangents, inputs: as in ``torch.autograd.grad``.
        again: the graph is kept for another one.
        rows: cotangents have a first dimension, of several products at once.
        graph: the result can be differentiated.
    """
    pairs = [(y, v) for y, v in zip(outputs, cotangents, strict=True) if v is not None and y.requires_grad]
    if not pairs or not inputs:
        return [None] * len(inputs)
    ys, vs = [y for y, _ in pairs], [v for _, v in pairs]
    narrow = any(y.dtype in (torch.float16, torch.bfloat16) for y in ys)
    scale = _power_of_two(vs) if narrow else None
    if scale is not None:
        vs = [(tree.working(v) * scale.to(v.device)).to(y.dtype) for y, v in zip(ys, vs, strict=True)]
    try:
        with twice_differentiable():
            back = partial(
                torch.autograd.grad, ys, inputs, retain_graph=again or graph, create_graph=graph, allow_unused=True
            )
            found = _by_rows(back, vs) if rows else back(vs)
    except RuntimeError as error:
        once = any(text in str(error) for text in _ONCE)
        by_vmap = not once or any(text in str(error) for text in ("vmap", "Batching rule"))
        if rows and by_vmap and not isinstance(error, torch.OutOfMemoryError):  # which callers catch by its class
            raise RuntimeError(f"vmap cannot take this loss: {error}; take hft.Forward(chunk=1)") from error
        if not once:
            raise
        raise RuntimeError(
            f"train_loss, or the optimizer, has no second derivative ({error}); use operations that have one, or "
            "strategy=hft.ZeroOrder(...), which needs none"
        ) from error
    return list(found) if scale is None else [None if x is None else tree.working(x) / scale.to(x) for x in found]


def _by_rows(back: Callable[..., Sequence[Tensor | None]], vs: Sequence[Tensor]) -> Row:
    """``back`` of each row of ``vs``, by vmap: that of ``is_grads_batched`` knows fewer operations."""
    used: list[bool] = []

    def one(vs: Sequence[Tensor]) -> list[Tensor]:
        found = back(vs)
        used[:] = [x is not None for x in found]
        return [x for x in found if x is not None]

    found = iter(torch.func.vmap(one, randomness="same")(vs))
    return [next(found) if is_used else None for is_used in used]


_ONCE = ("is not implemented", "double backward", "differentiate twice")


def _power_of_two(vs: Sequence[Tensor]) -> Tensor:
    """What brings the largest entry between 8 and 16: far from both ends of float16."""
    tops = [tree.working(v).abs().amax().to(vs[0].device).double() for v in vs if v.numel()]
    top = torch.stack(tops or [torch.ones((), dtype=torch.float64)]).amax()
    usable = top.isfinite() & (top > 0)
    exponent = torch.frexp(torch.where(usable, top, 1.0)).exponent
    return torch.ldexp(torch.ones_like(top), 4 - exponent)
