"""K steps of training as one differentiable function; a strategy defines its derivative."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from .. import tree
from ..calls import callers_level, explained
from ..hparams import concrete
from ..optimizers.leafwise import check_params
from ..types import HParams, Optimizer, Params, StateT, TreeT, check_optimizer
from .arguments import (
    check_arguments,
    check_batches,
    check_hparams,
    check_leaves,
    check_protocol,
    warn_of_frozen,
    without_loss,
)
from .data_parallel import check_steps
from .functorch import differentiated, tracked, under_transform
from .leaves import is_float
from .node import Job, TrainNode
from .rng import Recorder
from .sharded import on_mesh, refuse_other_processes
from .steps import Steps
from .strategy import Start, Strategy, Trained, check_strategy
from .unroll import Unroll
from .zero_order import ZeroOrder


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
) -> Trained[TreeT, StateT]:
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
    run = trained(optimizer, train_loss, params, batches, hparams, state, strategy)
    _warn_of_nan(run.losses)
    return run


def trained(
    optimizer: Optimizer[StateT],
    train_loss: Callable[..., Tensor],
    params: TreeT,
    batches: Sequence[Any],
    hparams: HParams | None,
    state: StateT | None,
    strategy: Strategy | None,
) -> Trained[TreeT, StateT]:
    """:func:`train`, where losses that are not finite are looked for elsewhere."""
    check_optimizer("optimizer", optimizer)
    check_protocol(optimizer)
    strategy = Unroll() if strategy is None else strategy
    check_strategy(strategy)
    batches = check_batches(batches)
    check_params(params)
    warn_of_frozen(optimizer, params)
    full = check_hparams(optimizer, hparams)
    check_arguments("train_loss", train_loss, 2, "loss" in full)
    if torch.is_inference_mode_enabled():
        raise RuntimeError("there are no gradients under torch.inference_mode(), so nothing would be trained; leave it")
    if state is None:
        state = optimizer.init(params, without_loss(full))
    check_steps(train_loss, len(batches))
    start = on_mesh(Start(full, params, state, batches), strategy)
    leaves, rebuild = _flat(start)
    check_leaves(leaves)
    wanted = [is_float(x) and tracked(x) and differentiated(x) for x in leaves]
    transform = under_transform()
    asked = rebuild(wanted) if isinstance(batches, (list, tuple)) else rebuild(wanted)._replace(batches=False)
    derived = transform or any(wanted)
    steps = Steps(optimizer, train_loss, asked, derived, looked_at=derived or torch.is_grad_enabled())
    if not steps.derived:
        with torch.no_grad():
            return refuse_other_processes(steps.loop(start), start)
    if transform and getattr(strategy, "exact", False):
        if any(wanted):
            _warn_of_float16(params)
        return steps.loop(start)
    places = [i for i, x in enumerate(leaves) if isinstance(x, Tensor) and tracked(x)]
    own = strategy.generator if isinstance(strategy, ZeroOrder) else None
    recorder = Recorder(*[] if own is None else [own])
    job = Job(strategy, steps, leaves, rebuild, places, transform, recorder, recorder.now())
    return refuse_other_processes(job.trained(TrainNode.apply(job, *(leaves[i] for i in places))), start)


def _flat(start: Start) -> tuple[list[Any], Callable[[Sequence[Any]], Start]]:
    """All leaves, and the way back; those of batches in a sequence of somebody's own are left where they are."""
    if isinstance(start.batches, (list, tuple)):
        leaves, rebuild = tree.flatten(tuple(start))
        return leaves, lambda new: Start(*rebuild(new))
    leaves, rebuild = tree.flatten(tuple(start[:3]))
    return leaves, lambda new: Start(*rebuild(new), batches=start.batches)


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
