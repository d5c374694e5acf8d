"""The gradient of an outer loss with respect to hyperparameters, through K steps of training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import tree
from ..calls import explained, warn_caller
from ..dtensors import is_dtensor
from ..hparams import concrete
from ..optimizers import hparam_paths as paths
from ..types import HParams, Optimizer, Params, StateT, TreeT
from .core.inputs import Step, TrainOutputs
from .core.leaves import all_finite, detached, is_float
from .core.second_order import twice_differentiable
from .core.strategy import Strategy
from .core.torch_private import uncompiled, under_transform
from .distributed.data_parallel import DataParallel, agreed, check_value, shards_differ
from .distributed.sharded_params import same_everywhere, whole_params
from .guards.call_arguments import argument_counts, check_batches, check_loss, check_scalar, refuse_inference
from .guards.messages import LOSSES
from .guards.operations import watched_operations
from .of_module import after
from .train import checked, joined, trained, walked

#: What ``over`` can name beside hparams.
START = ("params", "batches")


@uncompiled
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
    warn_of(found[1], found[0])
    return found


def with_start(full: dict[str, Any], params: Params, batches: Any) -> dict[str, Any]:
    """The hparams, and what else ``over`` can name."""
    taken = [name for name in START if name in full]
    if taken:
        raise ValueError(f"an hparam may not be called {taken[0]!r}: over means where training starts by it")
    return {**full, "params": params, "batches": batches}


def without_start(whole: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in whole.items() if name not in START}


def selected(
    params: Params, batches: Any, over: str | Sequence[str] | None, full: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """All that ``over`` can name, and what it names."""
    refuse_inference()
    everything = with_start(full, params, batches)
    names = tuple(full) if over is None else paths.normalise(over, everything)
    tuned = paths.select(everything, names)
    check_floats(tuned)
    return everything, tuned


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
    stop: Callable[[Step], Any] | None = None,
) -> tuple[Tensor, dict[str, Any], tuple[TreeT, StateT]]:
    """``stop``: a rule that ends training, where ``batches`` is any iterable."""
    full, strategy = checked(optimizer, train_loss, params, hparams, strategy)
    everything, tuned = selected(params, batches if stop else check_batches(batches), over, full)
    by_values = type(strategy).value_and_grad is not Strategy.value_and_grad
    _check_shards(tuned, params, train_loss, outer_loss, type(strategy).__name__ if by_values else None)
    check_loss("outer_loss", outer_loss)
    sees = argument_counts(outer_loss)[0] == 2  # whether it has a place for the loss's hparams
    if sees and "loss" not in full:
        raise ValueError(
            "outer_loss has a second argument, for the loss's hparams, but hparams has no entry 'loss'; without one it "
            "takes the params alone: lambda p: loss(p, held_out)"
        )

    def objective(leaves: Sequence[Tensor], how: Strategy) -> tuple[Tensor, TrainOutputs]:
        given = paths.merge(fixed, mine if leaves is at else rebuild(leaves))
        h = without_start(given)
        inputs = optimizer, train_loss, given["params"], given["batches"], h, first, how
        run = joined(walked(*inputs), stop) if stop else trained(*inputs)
        with twice_differentiable(), after(train_loss, run):
            ends = whole_params(run.params)
            value = outer_loss(ends, h["loss"]) if sees else outer_loss(ends)
            return same_everywhere(check_scalar("outer_loss", value), run.params), run

    def watched(leaves: Sequence[Tensor], how: Strategy) -> tuple[Tensor, TrainOutputs]:
        """For a strategy that computes values at many points, none of which may change another."""
        nonlocal looked
        if looked:
            return objective(leaves, how)
        looked = True
        with twice_differentiable(), watched_operations(LOSSES, collectives=True):
            return objective(leaves, how)

    looked = not by_values
    at, rebuild = tree.flatten(tuned)
    fixed, first, mine = everything, state, tuned
    if not under_transform():  # nothing outside is to grow a graph
        fixed, first, at = detached(everything), detached(state), [x.detach().requires_grad_() for x in at]
        mine = rebuild(at)
    value, found, run = strategy.value_and_grad(watched, at, partial(agreed, train_loss))
    check_value(train_loss, value)
    return value, rebuild(found), (run.params, run.state)


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


def _check_shards(
    tuned: dict[str, Any], params: Params, train_loss: Any, outer_loss: Any, by_values: str | None
) -> None:
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
    if by_values:
        raise shards_differ(f"{by_values}, unlike Unroll,")


def warn_of(grads: dict[str, Any], value: Tensor | None = None) -> None:
    """Warn of derivatives that are exactly 0, and of what is not finite, if the outer loss is given."""
    lost = [] if value is None or not concrete(value) or math.isfinite(value.item()) else ["outer loss"]
    for name, grad in grads.items():
        parts = [x for x in tree.leaves(grad) if concrete(x)]
        sums = [_sum(x) for x in parts]
        # A sum may be infinite, or 0, where no entry is.
        if not all(map(math.isfinite, sums)) and not all(map(all_finite, parts)):
            lost.append(f"hypergradient of {name!r}")
        if parts and not any(sums) and not any(bool(x.any()) for x in parts):
            warn_caller(
                f"the hypergradient of {name!r} is exactly 0: the outer loss does not depend on it through these steps"
            )
    if lost and value is not None:
        warn_caller(
            f"the {lost[0]} is not finite, so training went wrong or cannot be differentiated there: look at the "
            "losses of hft.train with the same arguments; take a smaller learning rate, or clip (hft.clipped)"
        )


def _sum(x: Tensor) -> float:
    """A number that is 0, or not finite, where a tensor is."""
    if is_dtensor(x):  # what all processes have to ask alike
        return float((x != 0).any()) if all_finite(x) else math.inf
    return (x if x.numel() == 1 else x.sum()).item()
