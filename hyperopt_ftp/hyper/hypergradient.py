"""The gradient of an outer loss with respect to hyperparameters, through K steps of training."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from .. import tree
from ..calls import callers_level, explained
from ..dtensors import whole
from ..hparams import concrete
from ..types import HParams, Optimizer, Params, StateT, TreeT
from .core.inputs import TrainOutputs
from .core.leaves import all_finite, combine, detached, detached_leaves, is_float
from .core.replay import Replay
from .core.second_order import twice_differentiable
from .core.strategy import Strategy
from .core.transforms import under_transform
from .distributed.data_parallel import DataParallel, agreed, check_value, shards_differ
from .distributed.dtensors import same_everywhere
from .guards.arguments import (
    argument_counts,
    check_batches,
    check_loss,
    check_scalar,
    with_start,
    without_start,
)
from .guards.subjects import LOSSES
from .guards.writes import refuse_writes
from .strategies.unroll import Unroll
from .towers import paths
from .train import checked, trained


@explained("hypergradient(optimizer, train_loss, outer_loss, params, batches, over)")
def hypergradient(
    optimizer: Optimizer[StateT],
    train_loss: Callable[..., Tensor],
    outer_loss: Callable[[Params], Tensor] | Callable[[Params, Any], Tensor],
    params: TreeT,
    batches: Sequence[Any],
    over: str | Sequence[str] | None = None,
    hparams: HParams | None = None,
    state: StateT | None = None,
    strategy: Strategy | None = None,
) -> tuple[Tensor, dict[str, Any], tuple[TreeT, StateT]]:
    """The gradient of an outer loss in the hyperparameters, through ``len(batches)`` steps of training.

    Computes ``d outer_loss(train(...).params) / d over`` in one call.

    Args:
        optimizer, train_loss, params, batches, hparams, state, strategy: as in :func:`train`. ``batches`` needs a
            length. A value in ``hparams`` may be a tree of 0-d tensors, one for each parameter.
        outer_loss: ``outer_loss(params) -> scalar``, such as the loss on validation data. If it has a second argument
            without a default, it gets ``hparams["loss"]`` there, and its direct derivative counts (DARTS).
        over: a path, or a tuple of paths, to differentiate in. Dots lead into trees (``"betas.0"``, ``"by.lr"``,
            ``"radius.fc.weight"``, ``"loss.l2"``). ``"params"`` is the starting point (MAML), ``"batches"`` the data
            (distillation), ``"batches.0.x"`` a part of it. ``None``: all hparams.

    Returns:
        ``(value, grads, (params, state))``: the outer loss, its gradients by the paths in ``over``, and where training
        ended. Without a graph, except under a ``torch.func`` transform, where all can be differentiated again.

    Raises:
        ValueError: a path in ``over`` that does not exist or leads to integers; an outer loss that is not a scalar.
        TypeError, ValueError, RuntimeError, ArithmeticError: as :func:`train` and the strategy.

    Warns:
        UserWarning: a gradient is exactly zero; the outer loss or a gradient is not finite; as :func:`train`.

    >>> import torch, hyperopt_ftp as hft
    >>> def loss(p, x): return ((p["w"] - x) ** 2).sum()
    >>> x = torch.ones(2, dtype=torch.float64)
    >>> value, grads, (p, state) = hft.hypergradient(
    ...     hft.adamw(lr=0.1), loss, lambda p: loss(p, x), {"w": 0 * x}, [x] * 5, over=("lr", "weight_decay")
    ... )
    >>> {name: bool(g < 0) for name, g in grads.items()}
    {'lr': True, 'weight_decay': False}
    """
    found = value_and_grad(optimizer, train_loss, outer_loss, params, batches, over, hparams, state, strategy)
    _warn_if_lost(found[0], found[1])
    for name, grad in found[1].items():
        warn_if_zero(name, grad)
    return found


def value_and_grad(
    optimizer: Optimizer[StateT],
    train_loss: Callable[..., Tensor],
    outer_loss: Callable[..., Tensor],
    params: TreeT,
    batches: Sequence[Any],
    over: str | Sequence[str] | None,
    hparams: HParams | None = None,
    state: StateT | None = None,
    strategy: Strategy | None = None,
) -> tuple[Tensor, dict[str, Any], tuple[TreeT, StateT]]:
    full, strategy = checked(optimizer, train_loss, params, hparams, strategy)
    everything = with_start(full, params, check_batches(batches))
    names = tuple(full) if over is None else paths.normalise(over, everything)
    tuned = paths.select(everything, names)
    check_floats(tuned)
    _check_shards(tuned, params, train_loss, outer_loss, strategy)
    check_loss("outer_loss", outer_loss)
    sees = argument_counts(outer_loss)[0] == 2  # whether it has a place for the loss's hparams
    if sees and "loss" not in full:
        raise ValueError(
            "outer_loss has a second argument, for the loss's hparams, but hparams has no entry 'loss'; without one it "
            "takes the params alone: lambda p: loss(p, held_out)"
        )

    def objective(leaves: Sequence[Tensor], how: Strategy = strategy) -> tuple[Tensor, TrainOutputs]:
        given = paths.merge(fixed, combine(tuned, leaves))
        own = without_start(given)
        run = trained(optimizer, train_loss, given["params"], given["batches"], own, first, how)
        with twice_differentiable():
            ends = tree.map_tree(whole, run.params)
            value = outer_loss(ends, own["loss"]) if sees else outer_loss(ends)
            return same_everywhere(check_scalar("outer_loss", value), run.params), run

    fixed, first = everything, state
    leaves = [x for x in tree.leaves(tuned) if is_float(x)]
    if not under_transform():  # nothing outside is to grow a graph
        fixed, first = detached(everything), detached(state)
        leaves = detached_leaves(tuned)[0]
    if strategy.needs_values_only:
        value, found, run = _from_values(objective, leaves, strategy, train_loss)
    elif under_transform():
        value, back, run = torch.func.vjp(objective, leaves, has_aux=True)  # pyright: ignore[reportAssignmentType]
        found = back(torch.ones_like(value))[0]
    else:
        with twice_differentiable():  # in the backward pass too: what a checkpoint computes again is computed alike
            with torch.enable_grad():
                value, run = objective(leaves)
            run = detached(run)
            found = _slopes(value, leaves, any(x.dtype == torch.float16 for x in tree.leaves(run.params)))
        value = value.detach()
    check_value(train_loss, value)
    return value, combine(tuned, found), (run.params, run.state)


def _slopes(value: Tensor, leaves: list[Tensor], narrow: bool) -> list[Tensor]:
    """The derivatives of the outer loss in leaves.

    float16 cotangents of the params would underflow, so the outer loss is scaled by the largest power of two that fits.
    """
    if not value.requires_grad:
        return [torch.zeros_like(x) for x in leaves]
    found: Sequence[Tensor | None] = []
    for scale in (2.0**15, 2.0**8, 1.0, 2.0**-8, 2.0**-15) if narrow else (1.0,):
        start = torch.full_like(value, scale)
        found = torch.autograd.grad(value, leaves, start, retain_graph=narrow, allow_unused=True)
        found = [None if x is None else x / scale for x in found] if narrow else found
        if not narrow or all(x is None or bool(x.isfinite().all()) for x in found):
            break
    return [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]


def _from_values(
    objective: Callable[..., tuple[Tensor, TrainOutputs]], leaves: list[Tensor], strategy: Strategy, train_loss: Any
) -> tuple[Tensor, list[Tensor], TrainOutputs]:
    replay, plain = Replay(), Unroll()
    rng = replay.now()
    # Under a transform somebody may differentiate the value, and the estimate.
    with nullcontext() if under_transform() else torch.no_grad():
        with refuse_writes(LOSSES, collectives=True):
            value, run = objective(leaves, plain)
        (seed,) = agreed(train_loss, [strategy.draw()])
        found = strategy.from_values(lambda x: objective(x, plain)[0], leaves, seed, replay, rng)
    return value, found, run


def check_floats(tuned: dict[str, Any]) -> None:
    if all(map(is_float, tree.leaves(tuned))):
        return
    for name, value in tuned.items():
        for path, x in tree.by_path(value).items():
            if not is_float(x):
                kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
                whole = f"{name}.{path}" if path else name
                raise ValueError(
                    f"over names {name!r}, but {whole!r} is {kind}: only floating-point tensors have a derivative; "
                    "name those"
                )


def _check_shards(tuned: dict[str, Any], params: Params, train_loss: Any, outer_loss: Any, strategy: Strategy) -> None:
    """Raise if a data-parallel loss would not get its shard, or if its derivative would be wrong."""
    if isinstance(outer_loss, DataParallel):
        raise ValueError(
            "outer_loss is data-parallel and needs its shard of a batch: give lambda p: whole(p, held_out), or "
            "lambda p, own: whole(p, held_out, own)"
        )
    if not isinstance(train_loss, DataParallel) or not any(name.split(".")[0] == "batches" for name in tuned):
        return
    if any(x.dtype == torch.float16 for x in tree.leaves(params)):
        raise shards_differ("training in float16")  # whose scale would depend on the shard
    if not strategy.takes_shards:
        raise shards_differ(f"{type(strategy).__name__}, unlike Unroll,")


def _warn_if_lost(value: Tensor, grads: dict[str, Any]) -> None:
    for what, x in (("outer loss", value), *((f"hypergradient of {name!r}", grad) for name, grad in grads.items())):
        parts = tree.leaves(x)
        if all(map(concrete, parts)) and not all(map(all_finite, parts)):
            warnings.warn(
                f"the {what} is not finite, so training went wrong or cannot be differentiated there: look at the "
                "losses of hft.train with the same arguments; take a smaller learning rate, or clip (hft.clipped)",
                UserWarning,
                stacklevel=callers_level(),
            )
            return


def warn_if_zero(name: str, grad: Any) -> None:
    parts = tree.leaves(grad)
    if parts and all(concrete(x) for x in parts) and all(bool((x == 0).all()) for x in parts):
        warnings.warn(
            f"the hypergradient of {name!r} is exactly 0: the outer loss does not depend on it through these steps",
            UserWarning,
            stacklevel=callers_level(),
        )
