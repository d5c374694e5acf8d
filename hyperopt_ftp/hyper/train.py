"""K steps of training as one differentiable function; a strategy defines its derivative."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import tree
from ..calls import check_flag, explained, warn_caller
from ..devices import two_devices
from ..dtensors import is_dtensor
from ..hparams import concrete
from ..optimizers.leafwise import check_params
from ..optimizers.tuned import warn_of_nan
from ..types import HParams, Optimizer, Params, StateT, TreeT, check_optimizer
from .core.graph import freed
from .core.inputs import ConstantBatches, Step, TrainInputs, TrainOutputs
from .core.leaves import all_finite, detached, requiring_grad, without_inference
from .core.problem import has_derivative
from .core.strategy import Strategy, check_stepwise, check_strategy, trained_by
from .core.torch_private import tracked, uncompiled, under_transform
from .distributed.data_parallel import check_steps
from .distributed.sharded_params import on_mesh, refuse_other_processes
from .field import field
from .guarded import problem_of
from .guards.call_arguments import (
    check_arguments,
    check_batches,
    check_hparams,
    check_leaves,
    check_protocol,
    no_batches,
    warn_of_frozen,
)
from .of_module import loss_of_module
from .strategies.unroll import Unroll

_DEFAULT = Unroll()


@uncompiled  # inside a function that torch.compile traces, a graph break: steps are run as they are
@explained("train(optimizer, train_loss, params, batches)")
def train(
    optimizer: Optimizer[StateT],
    train_loss: Callable[..., Tensor] | None,
    params: TreeT,
    batches: Sequence[Any],
    *,
    hparams: HParams | None = None,
    state: StateT | None = None,
    strategy: Strategy | None = None,
    progress: bool = False,
    grads: Callable[..., TreeT] | None = None,
) -> TrainOutputs[TreeT, StateT]:
    """Train for ``len(batches)`` steps, as one function that can be differentiated.

    With ``g = d train_loss(params, batches[k]) / d params``, step k is
    ``params, state <- optimizer.update(g, state, params, hparams)``. Differentiate the result in the hparams, the
    params, the state or the floating-point tensors of the batches, by autograd or the transforms of ``torch.func``,
    nested as you like. The strategy decides how, and what it costs. The values are always those of the plain loop.

    Args:
        optimizer: a pure optimizer of the package.
        train_loss: ``train_loss(params, batch) -> scalar``, or ``train_loss(params, batch, hparams["loss"])`` if
            ``hparams["loss"]`` is given. What it closes over is differentiated too where autograd owns the graph (see
            :class:`Unroll`). Of a module: :func:`of_module`.
        params: pytree of floating-point tensors, the starting point.
        batches: a list or tuple with one entry for each step, or a tensor whose first dimension counts the steps. Any
            other sequence is read entry by entry, more than once, and counts as constant.
        hparams: values that replace some of ``optimizer.hparams``; under ``"loss"`` a tree of tensors for the loss.
        state: the optimizer's state at the start. ``None``: ``optimizer.init(params, hparams)``, which is
            differentiated too.
        strategy: :class:`Unroll` (default), :class:`Forward`, :class:`Implicit`, :class:`ZeroOrder`, or your own
            :class:`~hyperopt_ftp.hyper.Strategy`.
        progress: show a bar, by tqdm (extra ``progress``), of the steps as :func:`steps` makes them.
        grads: for games, with ``None`` for the loss: ``grads(params, batch)``, or ``grads(params, batch,
            hparams["loss"])``, gives ``g`` itself, in the structure of the params and with a graph, as by
            ``torch.func.grad``. Not with :class:`Forward`, conjugate gradients or ``compile``.

    Returns:
        ``(params, state, losses)``: the params and state after the last step, and the training loss before each step,
        shape ``(K,)``, without a graph; with ``grads``, their norm. Also ``buffers``, see :func:`of_module`;
        and ``detached()``, the same without graphs, to begin another training there.

    Raises:
        TypeError: an optimizer that is not pure, integer params, batches that are not a sequence, an unknown strategy,
            entries of ``hparams["loss"]`` that are not tensors.
        ValueError: no batches; a loss that is not a scalar, has no graph, or cannot take ``hparams["loss"]``; a loss
            that closes over a tensor that requires grad, where autograd does not own the graph, so that its derivative
            would be lost; tensors on the meta device, or on two devices where torch refuses both in one operation;
            complex tensors that require grad; ``progress`` with a strategy that needs all steps at once.
        RuntimeError: errors of the strategy; in the backward pass, a tensor that was changed in place, a training
            through which one has gone, or ``create_graph=True`` with a strategy that is not exact.

    Warns:
        UserWarning: a training loss that is not finite (once, at the end; not under a transform); params that require
            grad, where the strategy has no derivative in them, or of which some are frozen; float16 params under a
            transform; warnings of the strategy.

    If a derivative is asked for, attention runs by its formula, because the fused kernels have no second derivative.
    Functions compiled by ``torch.compile`` run uncompiled. Both hold for all threads of the process meanwhile. Under
    ``torch.inference_mode()``, which is left for the time of the call, there are values alone.

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
    loss: Any = train_loss if grads is None else field(train_loss, grads, hparams, strategy)
    full, strategy = checked(optimizer, loss, params, hparams, strategy)
    check_flag("progress", progress)
    batches = check_batches(batches)
    warn_of_constant_start(strategy, params, (full, batches))
    if progress:
        check_stepwise("progress=True", strategy)
        try:
            from tqdm.auto import tqdm
        except ImportError as error:
            raise ImportError("progress=True shows a bar by tqdm: pip install 'hyperopt-ftp[progress]'") from error
        each = walked(optimizer, loss, params, entries(batches), full, state, strategy)
        run = joined(tqdm(each, total=len(batches)))
    else:
        run = trained(optimizer, loss, params, batches, full, state, strategy)
    _warn_of_nan(run.losses)
    if optimizer.tunes:
        tuned = {f".{path}": x for path, x in tree.named(run.state)}
        warn_of_nan({path.rpartition(".tuned.")[2]: x for path, x in tuned.items() if ".tuned." in path})
    return run


def checked(
    optimizer: Optimizer, train_loss: Any, params: Params, hparams: HParams | None, strategy: Any
) -> tuple[HParams, Strategy]:
    check_optimizer("optimizer", optimizer)
    check_protocol(optimizer)
    if strategy is not None:
        check_strategy(strategy)
    check_params(params)
    warn_of_frozen(optimizer, params)
    full = check_hparams(optimizer, hparams)
    check_arguments("train_loss", train_loss, 2, "loss" in full)
    return full, strategy or _DEFAULT


def trained(
    optimizer: Optimizer[StateT],
    train_loss: Callable[..., Tensor],
    params: TreeT,
    batches: Sequence[Any],
    full: HParams,
    state: StateT | None,
    strategy: Strategy,
    before: int = 0,
) -> TrainOutputs[TreeT, StateT]:
    """``before``: see :class:`InnerProblem`."""
    if torch.is_inference_mode_enabled():  # which is left: nothing is differentiated there
        with torch.inference_mode(False), torch.no_grad():
            return trained(optimizer, train_loss, params, batches, full, state, strategy, before)
    module = loss_of_module(train_loss)
    if module is not None:
        (optimizer, train_loss, params, state), back = module.carrying(optimizer, train_loss, params, state)
        return back(trained(optimizer, train_loss, params, batches, full, state, strategy, before))
    check_steps(train_loss, len(batches))
    given = batches if isinstance(batches, list) else ConstantBatches(batches)
    weights = tree.leaves(params)
    inputs = TrainInputs(beside(weights, full), params, state, given)
    sharded = any(map(is_dtensor, weights))
    if sharded:
        inputs = on_mesh(inputs, optimizer)
    for node in freed(weights + tree.leaves(state)):
        node.register_prehook(_refuse_again)
    if check_leaves(weights + tree.leaves((full, state, given))):
        inputs = without_inference(inputs)
    if under_transform() or before == 1:
        _warn_of_float16(inputs)
    problem = problem_of(optimizer, train_loss, sharded, before)
    try:
        run = trained_by(strategy, problem, inputs)
    except RuntimeError as error:
        first = given if isinstance(given, list) else [given[0]]
        found = two_devices(error, params, batches=first, hparams=full, state=state)
        raise found from found.__cause__
    return refuse_other_processes(run, inputs) if sharded else run


def entries(batches: Any) -> Iterator[Any]:
    return (batches[k] for k in range(len(batches)))  # a sequence may not know where it ends


def walked(
    optimizer: Optimizer[StateT], train_loss: Callable[..., Tensor], params: TreeT, batches: Iterable[Any],
    full: HParams, state: StateT | None, strategy: Strategy,
) -> Generator[Step[TreeT, StateT], None, None]:  # fmt: skip
    """The steps of a training, each a training of its own."""
    full, k = beside(tree.leaves(params), full), None  # numbers go to the device once
    for k, batch in enumerate(batches):
        run = trained(optimizer, train_loss, params, [batch], full, state, strategy, k)
        params, state = run[:2] if not strategy.constant_start else detached(run[:2])
        yield Step(k, run.params, run.state, run.losses[0])
    if k is None:
        raise no_batches()


def joined(steps: Iterable[Step[TreeT, StateT]], stop: Callable[[Step], Any] = lambda step: False) -> TrainOutputs:
    """Steps up to the first where a rule says so, as one training."""
    losses, step = list[Tensor](), None
    for step in steps:
        losses.append(step.loss)
        if stop(step):
            break
    assert step is not None
    return TrainOutputs(step.params, step.state, torch.stack(losses))


def beside(params: Sequence[Tensor], hparams: HParams) -> HParams:
    """Numbers that are differentiated, on the device of the params: they go there once, and their derivatives come
    back once, not in each step. Others stay on the CPU, where the host may read them."""
    devices = {x.device for x in params}
    if len(devices) != 1 or params[0].is_cpu:
        return hparams
    return tree.map_tree(lambda x: x.to(params[0].device) if tracked(x) and x.is_cpu else x, hparams)


def warn_of_constant_start(strategy: Strategy, params: Params, others: Any) -> None:
    """A module's parameters always require grad. What else does was asked for, if not as another input (iMAML)."""
    if not strategy.constant_start or not torch.is_grad_enabled() or under_transform():
        return
    asked, elsewhere = requiring_grad(params), set(map(id, requiring_grad(others)))
    meant = any(x.is_leaf and not isinstance(x, torch.nn.Parameter) and id(x) not in elsewhere for x in asked)
    if meant or (asked and not elsewhere):
        warn_caller(
            f"params require grad, and this {type(strategy).__name__} takes the start of training for a constant, so "
            "they get no derivative (their .grad stays None): take hft.Unroll(), with first_order=True for first-order "
            "MAML; to hold them fixed pass their detach()"
        )


def _refuse_again(grads: Any) -> None:
    """In place of torch's error, in a backward pass that would go where one has been."""
    raise RuntimeError(
        "this backward pass goes on into what made the params or the state of this training (an earlier training, or a "
        "computation of yours), through which one has gone already: begin the next training at run.detached(); for a "
        "loss at each step, add the losses and call backward() once; or call the earlier one with retain_graph=True"
    )


def _warn_of_nan(losses: Tensor) -> None:
    if not concrete(losses) or all_finite(losses):
        return
    k = int((~losses.isfinite()).nonzero()[0])
    warn_caller(
        f"the training loss of step {k} of {len(losses)} is {losses[k].item()}, so what was trained is of no use: take "
        "a smaller learning rate, or clip (hft.clipped)"
    )


def _warn_of_float16(inputs: TrainInputs) -> None:
    if any(x.dtype == torch.float16 for x in tree.leaves(inputs.params)) and has_derivative(inputs):
        warn_caller(
            "under a torch.func transform, and between steps that are made one by one, the adjoints of float16 params "
            "are float16 too, where small ones vanish; train keeps them in float32 without a transform"
        )
