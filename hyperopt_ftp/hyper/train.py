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
from ..devices import two_devices
from ..dtensors import is_dtensor
from ..hparams import concrete
from ..optimizers.leafwise import check_params
from ..types import HParams, Optimizer, Params, StateT, TreeT, check_optimizer
from .core.inputs import ConstantBatches, TrainInputs, TrainOutputs
from .core.leaves import all_finite
from .core.problem import has_derivative
from .core.strategy import Strategy, check_strategy, trained_by
from .core.torch_private import tracked, under_transform
from .distributed.data_parallel import check_steps
from .distributed.sharded_params import on_mesh, refuse_other_processes
from .guarded import problem_of
from .guards.call_arguments import (
    check_arguments,
    check_batches,
    check_hparams,
    check_leaves,
    check_protocol,
    warn_of_frozen,
)
from .strategies.unroll import Unroll

_DEFAULT = Unroll()


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
    """Train for ``len(batches)`` steps, as one function that can be differentiated.

    With ``g = d train_loss(params, batches[k]) / d params``, step k is
    ``params, state <- optimizer.update(g, state, params, hparams)``. Differentiate the result in the hparams, the
    params, the state or the floating-point tensors of the batches. Use ``backward``, ``torch.autograd.grad`` or the
    transforms of ``torch.func``, nested as you like. The strategy decides how the derivative is computed and what it
    costs. The values are always those of the plain loop.

    Args:
        optimizer: a pure optimizer of the package.
        train_loss: ``train_loss(params, batch) -> scalar``, or ``train_loss(params, batch, hparams["loss"])`` if
            ``hparams["loss"]`` is given. What it closes over is differentiated too where autograd owns the graph (see
            :class:`Unroll`).
        params: pytree of floating-point tensors, the starting point.
        batches: a list or tuple with one entry for each step, or a tensor whose first dimension counts the steps. Any
            other sequence is read entry by entry, more than once, and counts as constant.
        hparams: values that replace some of ``optimizer.hparams``. The entry ``"loss"`` is optional: a tree of tensors
            that the training loss takes as its third argument.
        state: the optimizer's state at the start. ``None``: ``optimizer.init(params, hparams)``, which is
            differentiated too.
        strategy: :class:`Unroll` (default), :class:`Forward`, :class:`Implicit`, :class:`ZeroOrder`, or your own
            :class:`~hyperopt_ftp.hyper.Strategy`.

    Returns:
        ``(params, state, losses)``: the params and state after the last step, and the training loss before each step,
        shape ``(K,)``, without a graph.

    Raises:
        TypeError: an optimizer that is not pure, integer params, batches that are not a sequence, an unknown strategy,
            entries of ``hparams["loss"]`` that are not tensors.
        ValueError: no batches; a loss that is not a scalar, has no graph, or cannot take ``hparams["loss"]``; a loss
            that closes over a tensor that requires grad, where autograd does not own the graph, so that its derivative
            would be lost; tensors on the meta device or of inference mode; complex tensors that require grad; a batch,
            state or hparam that is on another device than the params where torch refuses both in one operation.
        RuntimeError: inference mode; errors of the strategy; in the backward pass, a tensor that was changed in place,
            or ``create_graph=True`` with a strategy that is not exact.

    Warns:
        UserWarning: a training loss that is not finite (once, at the end; not under a transform); float16 params under
            a transform; frozen parameters of a module among params that require grad; warnings of the strategy.

    If a derivative is asked for, attention runs by its formula, because the fused kernels have no second derivative.
    Functions compiled by ``torch.compile`` run uncompiled. Both hold for all threads of the process meanwhile.

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
    check_optimizer("optimizer", optimizer)
    check_protocol(optimizer)
    strategy = _DEFAULT if strategy is None else strategy
    check_strategy(strategy)
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
    check_steps(train_loss, len(batches))
    given = batches if isinstance(batches, list) else ConstantBatches(batches)
    own = tree.leaves(params)
    inputs = TrainInputs(beside(own, full), params, state, given)
    sharded = any(map(is_dtensor, own))
    if sharded:
        inputs = on_mesh(inputs, optimizer)
    check_leaves(own + tree.leaves((full, state, given)))
    if under_transform():
        _warn_of_float16(inputs)
    try:
        run = trained_by(strategy, problem_of(optimizer, train_loss, sharded), inputs)
    except RuntimeError as error:
        first = given if isinstance(given, list) else [given[0]]
        found = two_devices(error, params, batches=first, hparams=full, state=state)
        raise found from found.__cause__
    return refuse_other_processes(run, inputs) if sharded else run


def beside(params: Sequence[Tensor], hparams: HParams) -> HParams:
    """Numbers that are differentiated, on the device of the params: they go there once, and their derivatives come
    back once, not in each step. Others stay on the CPU, where the host may read them."""
    devices = {x.device for x in params}
    if len(devices) != 1 or params[0].is_cpu:
        return hparams
    return tree.map_tree(lambda x: x.to(params[0].device) if tracked(x) and x.is_cpu else x, hparams)


def _warn_of_nan(losses: Tensor) -> None:
    if not concrete(losses) or all_finite(losses):
        return
    k = int((~losses.isfinite()).nonzero()[0])
    warnings.warn(
        f"the training loss of step {k} of {len(losses)} is {losses[k].item()}, so what was trained is of no use: take "
        "a smaller learning rate, or clip (hft.clipped)",
        UserWarning,
        stacklevel=callers_level(),
    )


def _warn_of_float16(inputs: TrainInputs) -> None:
    if any(x.dtype == torch.float16 for x in tree.leaves(inputs.params)) and has_derivative(inputs):
        warnings.warn(
            "under a torch.func transform the adjoints of float16 params are float16 too, where small ones vanish; "
            "without a transform they are kept in float32",
            UserWarning,
            stacklevel=callers_level(),
        )
