"""K steps of training as one differentiable function; a strategy defines its derivative."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from .. import tree
from ..calls import callers_level, explained
from ..hparams import concrete
from ..optimizers.leafwise import check_params
from ..types import HParams, Optimizer, Params, StateT, TreeT, check_optimizer
from .core.inputs import TrainInputs, TrainOutputs
from .core.leaves import is_float
from .core.node import TrainJob, TrainNode
from .core.problem import without_loss
from .core.replay import Replay
from .core.second_order import twice_differentiable
from .core.strategy import Strategy, check_strategy
from .core.transforms import differentiated, tracked, under_transform
from .distributed.data_parallel import DataParallel, check_steps, shards_differ
from .distributed.dtensors import on_mesh, refuse_other_processes
from .guarded import guarded_problem
from .guards.arguments import (
    ConstantBatches,
    check_arguments,
    check_batches,
    check_compilable,
    check_hparams,
    check_leaves,
    check_protocol,
    warn_of_frozen,
)
from .guards.verified import Asked, verified
from .strategies.unroll import Unroll
from .unrolling.scan import why_not


@_disable_dynamo  # inside a function that torch.compile traces, a graph break: steps are run as they are
@explained("train(optimizer, train_loss, params, batches)")
def train(
    optimizer: Optimizer[StateT],
    train_loss: Callable[..., Tensor],
    params: TreeT,
    batches: Sequence[Any],
    *,
    hparams: HParams | None = None,
    state: StateT | None = None,
    strategy: Strategy | None = None,
) -> TrainOutputs[TreeT, StateT]:
    """Train for ``len(batches)`` steps, as one differentiable function of all that goes in.

    With ``g = d train_loss(params, batches[k]) / d params``, step k is
    ``params, state <- optimizer.update(g, state, params, hparams)``.
    The result can be differentiated in the hparams (those of the loss as well), the params, the state and the
    floating-point tensors of the batches: by ``backward``, by ``torch.autograd.grad`` and, in any nesting, by the
    transforms of ``torch.func``. How, and at what cost, is for the strategy to say; the values are always those of the
    plain loop. What requires no gradient costs nothing.

    Args:
        optimizer: a pure optimizer of the package, tuned ones and combinations included.
        train_loss: ``train_loss(params, batch) -> scalar``; with ``hparams["loss"]`` given,
            ``train_loss(params, batch, hparams["loss"])``. All that a derivative is taken in has to be an argument.
        params: pytree of floating-point tensors; where training starts.
        batches: a list or tuple, one entry for each step, or a tensor whose first dimension is the steps. Any other
            sequence is read entry by entry, more than once, and is constant.
        hparams: any of ``optimizer.hparams``, whose values the others have; and optionally ``"loss"``: a tree of the
            loss's own.
        state: the optimizer's, to train on; ``None``: ``optimizer.init(params, hparams)``, which is differentiated too.
        strategy: :class:`Unroll` by default; :class:`Forward`, :class:`Implicit`, :class:`ZeroOrder`, or an object of
            one's own (:class:`~hyperopt_ftp.hyper.Strategy`).

    Returns:
        ``(params, state, losses)``: where training ended, and the training loss before each step, shape ``(K,)``, which
        carries no graph.

    Raises:
        TypeError: an optimizer that is not pure, integer params, batches that are no sequence, no strategy, entries of
            ``hparams["loss"]`` that are no tensors.
        ValueError: no batches, a loss that is no scalar or has no graph or no place for ``hparams["loss"]``, one that
            uses a tensor which requires grad and is no argument of ``train`` (its derivative would be lost); tensors on
            the meta device, of inference mode, or complex where a derivative is asked for.
        RuntimeError: inference mode; what the strategy raises; in the backward pass, a tensor that was changed in place
            since, and ``create_graph=True`` with a strategy that is not exact.

    Warns:
        UserWarning: a training loss that is not finite (once, at the end; not under a transform); float16 params under
            a transform; frozen parameters of a module among the params, beside others that require grad; what the
            strategy warns of.

    Where something is differentiated, attention runs by its formula, since the fused kernels have no second
    derivatives, and functions compiled by ``torch.compile`` run as they are written: in all threads while one is here.

    >>> import torch, hyperopt_ftp as hft
    >>> def loss(p, x): return ((p - x) ** 2).sum()
    >>> lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    >>> opt, w, x = hft.sgd(), torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    >>> run = hft.train(opt, loss, w, [x] * 3, hparams={"lr": lr})
    >>> run.losses
    tensor([1.0000, 0.6400, 0.4096], dtype=torch.float64)
    >>> loss(run.params, x).backward()
    >>> round(lr.grad.item(), 6)                        # d (1 - 2 lr)^6 / d lr = -12 (1 - 2 lr)^5
    -3.93216
    """
    full, strategy = checked(optimizer, train_loss, params, hparams, strategy)
    run = trained(optimizer, train_loss, params, check_batches(batches), full, state, strategy)
    _warn_of_nan(run.losses)
    return run


def checked(
    optimizer: Optimizer, train_loss: Any, params: Params, hparams: HParams | None, strategy: Any
) -> tuple[HParams, Strategy]:
    """Complete hparams and the strategy, or an error where training cannot begin."""
    check_optimizer("optimizer", optimizer)
    check_protocol(optimizer)
    strategy = Unroll() if strategy is None else strategy
    check_strategy(strategy)
    strategy = _runnable(strategy, params)
    check_params(params)
    warn_of_frozen(optimizer, params)
    full = check_hparams(optimizer, hparams)
    check_arguments("train_loss", train_loss, 2, "loss" in full)
    if torch.is_inference_mode_enabled():
        raise RuntimeError("there are no gradients under torch.inference_mode(), so nothing would be trained; leave it")
    return full, strategy


def trained(
    optimizer: Optimizer[StateT],
    train_loss: Callable[..., Tensor],
    params: TreeT,
    batches: Sequence[Any],
    full: HParams,
    state: StateT | None,
    strategy: Strategy,
) -> TrainOutputs[TreeT, StateT]:
    """:func:`train` of what :func:`checked` gives; losses that are not finite are looked for elsewhere."""
    if state is None:
        state = optimizer.init(params, without_loss(full))
    check_steps(train_loss, len(batches))
    inputs = on_mesh(TrainInputs(full, params, state, batches), strategy)
    given = inputs if isinstance(batches, list) else inputs._replace(batches=ConstantBatches(batches))
    leaves, rebuild = tree.flatten(given)
    check_leaves(leaves)
    flags = [is_float(x) and tracked(x) and differentiated(x) for x in leaves]
    needs_grad = rebuild(flags)
    transform = under_transform()
    derived = transform or any(flags)
    looked_at = derived or torch.is_grad_enabled()
    asked = Asked(derived, looked_at, any(flags), strategy.twice, bool(strategy.compile))
    kinds: list[Any] = []
    for x in leaves:
        plain = isinstance(x, Tensor) and not x.is_nested
        kinds += (x.shape, x.dtype, x.device) if plain else () if x is given.batches else (x,)
    local = train_loss.loss if isinstance(train_loss, DataParallel) else train_loss
    known = verified(local, optimizer.update, (*asked, *flags, *kinds))
    guarded = partial(guarded_problem, optimizer, train_loss, inputs.params, needs_grad, known)
    if not derived:
        with torch.no_grad():
            return refuse_other_processes(strategy.values(guarded(asked), inputs), inputs)
    if transform and strategy.exact:
        if asked.needs_grad:
            _warn_of_float16(params)
        with twice_differentiable():
            return guarded(asked).loop(inputs)
    _check_processes(strategy, train_loss, needs_grad)
    if strategy.compile and not transform:
        check_compilable(params)
    places = [i for i, x in enumerate(leaves) if isinstance(x, Tensor) and tracked(x)]
    problem = guarded(asked)
    first = guarded(asked._replace(inside_function=True)) if transform else problem
    replay = Replay(*strategy.generators)
    job = TrainJob(strategy, problem, first, leaves, rebuild, places, transform, replay, replay.now())
    return refuse_other_processes(job.trained(TrainNode.apply(job, *(leaves[i] for i in places))), inputs)


def _runnable(strategy: Strategy, params: Params) -> Strategy:
    """The strategy, without ``compile`` where nothing can be compiled."""
    device = next((x.device for x in tree.leaves(params) if isinstance(x, Tensor)), None)
    why = why_not(strategy.compile, device) if strategy.compile and device else None
    if why is None:
        return strategy
    warnings.warn(f"compile=True has no effect: {why}", UserWarning, stacklevel=callers_level())
    return replace(strategy, compile=False)  # pyright: ignore[reportArgumentType]


def _check_processes(strategy: Strategy, train_loss: Any, needs_grad: TrainInputs) -> None:
    """Raise where a strategy cannot do what a data-parallel loss needs."""
    if not isinstance(train_loss, DataParallel):
        return
    if strategy.compile:
        raise ValueError(
            "compile=True cannot take a data-parallel loss: a program has no collectives that can be differentiated "
            "twice; leave it out"
        )
    if not strategy.takes_shards and any(tree.leaves(needs_grad.batches)):
        raise shards_differ(f"{type(strategy).__name__}, unlike Unroll,")


def _warn_of_nan(losses: Tensor) -> None:
    """Of the first loss that is not finite; by the numbers, which are waited for once, at the end."""
    if not concrete(losses) or bool(losses.isfinite().all()):
        return
    k = int((~losses.isfinite()).nonzero()[0])
    warnings.warn(
        f"the training loss of step {k} of {len(losses)} is {losses[k].item()}, so what was trained is of no use: take "
        "a smaller learning rate, or clip (hft.clipped)",
        UserWarning,
        stacklevel=callers_level(),
    )


def _warn_of_float16(params: Params) -> None:
    if any(x.dtype == torch.float16 for x in tree.leaves(params)):
        warnings.warn(
            "under a torch.func transform the adjoints of float16 params are float16 too, where small ones vanish; "
            "without a transform they are kept in float32",
            UserWarning,
            stacklevel=callers_level(),
        )
