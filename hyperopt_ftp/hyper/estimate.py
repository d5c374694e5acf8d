"""What a hypergradient will take of memory and time, before it is computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode

from .. import tree
from ..calls import explained
from ..dtensors import is_dtensor
from ..optimizers import hparam_paths as paths
from ..types import HParams, Optimizer, StateT, TreeT, check_optimizer
from .core.inputs import ConstantBatches, TrainInputs
from .core.leaves import combine, detached, detached_leaves, is_float
from .core.memory import trial_peak
from .core.problem import InnerProblem
from .core.replay import Replay
from .core.second_order import twice_differentiable
from .core.strategy import Costs, Strategy, memory_of_steps
from .distributed.data_parallel import DataParallel
from .guarded import problem_of
from .guards.call_arguments import check_batches, check_hparams
from .hypergradient import selected, without_start
from .train import beside, checked


class Estimate(NamedTuple):
    """What a hypergradient will take, without the outer loss: the result of :func:`estimate`.

    Attributes:
        memory: peak bytes of tensors on the device of the params, above what is held when training begins.
        gradients: number of gradients of the training loss (a forward and a backward pass each), recomputed steps
            included.
        products: number of products with its second derivatives (a backward pass through a gradient each); of
            ``Forward`` at most so many.
        plan: what is stored, in words.

    >>> import torch, hyperopt_ftp as hft
    >>> def loss(p, x): return ((p - x) ** 2).sum()
    >>> data = [torch.empty(1000, device="meta")] * 9
    >>> found = hft.estimate(hft.sgd(), loss, data[0], data, over="lr", strategy=hft.Unroll(checkpoint=3))
    >>> found.gradients, found.products, found.time, found.plan
    (22, 8, 38, 'the points of every n-th step, n = 3')
    """

    memory: int
    gradients: int
    products: int
    plan: str

    @property
    def time(self) -> int:
        """Of gradients and products, in units of one gradient.

        A gradient has three products of matrices for each of the loss's; going back through it has six.
        """
        return self.gradients + 2 * self.products


@explained("estimate(optimizer, train_loss, params, batches)")
def estimate(
    optimizer: Optimizer[StateT],
    train_loss: Callable[..., Tensor],
    params: TreeT,
    batches: Sequence[Any],
    *,
    over: str | Sequence[str] | None = None,
    hparams: HParams | None = None,
    state: StateT | None = None,
    strategy: Strategy | None = None,
) -> Estimate:
    """Predict the memory and time of :func:`hypergradient`, from a few of its steps.

    With K = ``len(batches)``, P bytes of params, S of state, G of the graph of one gradient, and N numbers in ``over``,
    of which T = min(N, chunk) have tangents at once::

        strategy                   gradients          products        memory, about
        Unroll(checkpoint=False)   K                  K               (K - 1) (P + S) + K G
        Unroll(checkpoint=1)       2 K                K               (K - 1) (P + S) + G
        Unroll(checkpoint="sqrt")  3 K                K               2 sqrt(K) (P + S) + G
        Forward(chunk)             K (1 + N / T)      K N             2 T (P + S) + G      (K gradients where T = N)
        Implicit(iterations)       K + 2              iterations + 2  2 (P + S) + G
        ZeroOrder(samples)         K (2 samples + 1)  0               2 samples (P + S + a gradient's activations)

    These are the leading terms. The result itself is counted and measured, in runs of at most three steps. The random
    state does not change. ``Unroll()`` is the first row if all graphs are small, else the second.

    **Models too large for this machine.** Put the params on the meta device, or use fake tensors
    (``torch._subclasses.FakeTensorMode``): nothing is computed then. Their device counts as an accelerator, so
    ``offload`` moves points off it.

    Args:
        optimizer, train_loss, params, batches, over, hparams, state: as in :func:`hypergradient`. Only the first
            batches are used, and of a loss by :func:`data_parallel` this process's part.
        strategy: :class:`Unroll` (default), :class:`Forward`, :class:`Implicit` (all iterations are counted),
            :class:`ZeroOrder`, or your own with a method ``costs(problem, inputs)``. Without ``compile``.

    Raises:
        TypeError: a strategy without ``costs``; params that are DTensors; as :func:`hypergradient`.
        ValueError: ``compile=True``; too little ``memory`` for ``Unroll(memory=)``; as :func:`hypergradient`.

    Not included: the outer loss, larger later batches, workspace inside kernels, a state that training makes itself,
    and the time of updates, of ``offload`` and of collectives.

    >>> import torch, hyperopt_ftp as hft
    >>> def loss(p, x): return (torch.tanh(x @ p["a"]) @ p["b"]).square().mean()
    >>> params = {"a": torch.empty(4096, 16384, device="meta"), "b": torch.empty(16384, 1, device="meta")}
    >>> batches = [torch.empty(64, 4096, device="meta")] * 100
    >>> found = hft.estimate(hft.adamw(), loss, params, batches, over="lr", strategy=hft.Unroll(checkpoint="sqrt"))
    >>> f"{found.memory / 2**30:.1f} GiB, {found.gradients} gradients, {found.products} products: {found.plan}"
    '14.3 GiB, 281 gradients, 99 products: the points of every n-th step, n = 10'
    """
    check_optimizer("optimizer", optimizer)
    if getattr(strategy, "compile", False):
        raise ValueError(
            "compile=True: what a compiled step takes is for the compiler to choose; estimate the strategy without "
            "compile, or measure a short run with it"
        )
    if any(map(is_dtensor, tree.leaves(params))):
        raise TypeError("estimate takes plain params, got DTensors; give whole ones, also on the meta device")
    local = train_loss.loss if isinstance(train_loss, DataParallel) else train_loss
    (mode, fake), batches = _fakes(params), check_batches(batches)
    # A sequence of somebody's own is read entry by entry.
    known = fake(batches) if isinstance(batches, list) else ConstantBatches(batches)
    params, full, first = fake((params, check_hparams(optimizer, hparams), state))
    with mode, torch.enable_grad():
        full, strategy = checked(optimizer, local, params, full, strategy)
        everything, tuned = selected(params, known, over, full)
        given = paths.merge(detached(everything), combine(tuned, detached_leaves(tuned)[0]))
        hparams = beside(tree.leaves(given["params"]), without_start(given))
        inputs = TrainInputs(hparams, given["params"], first, given["batches"])
        problem = problem_of(optimizer, local)
        inputs = problem.begun(inputs)
        problem = problem.asking(tree.map_tree(lambda x: is_float(x) and x.requires_grad, inputs))
        # Autograd's own thread for a device frees a graph at some time while the next one is made.
        with twice_differentiable(), torch.autograd.set_multithreading_enabled(False):
            return _measured(strategy, problem, inputs)


def _fakes(params: Any) -> tuple[AbstractContextManager[Any], Callable[[Any], Any]]:
    """A context without values, and what takes them from a tree; where params have values, neither does anything.

    Fake tensors can do more than meta tensors: move to another device, combine with real tensors, and draw random
    numbers. They are on the device of the params.
    """
    rows = tree.tensors(params)
    if not any(x.is_meta or isinstance(x, FakeTensor) for x in rows):
        return nullcontext(), lambda values: values
    modes = [x.fake_mode for x in rows if isinstance(x, FakeTensor)]
    mode = modes[0] if modes else FakeTensorMode(allow_non_fake_inputs=True)
    made: dict[int, tuple[Tensor, Tensor]] = {}  # the given one lives as long as its number

    def fake(x: Any) -> Any:
        if not isinstance(x, Tensor) or isinstance(x, FakeTensor):
            return x
        if id(x) not in made:
            with mode, torch.no_grad():
                new = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=rows[0].device)
            made[id(x)] = (x, new.requires_grad_(x.requires_grad))
        return made[id(x)][1]

    return mode, partial(tree.map_tree, fake)


def _measured(strategy: Strategy, problem: InnerProblem, inputs: TrainInputs) -> Estimate:
    replay = Replay()
    looking = problem.guarded(inputs, closed=False)
    try:  # which raises what training would, before anything is measured
        replay.again(lambda: looking.gradient(inputs.params, inputs.batches[0], inputs.hparams, graph=True))
    except DataDependentOutputException as error:
        raise RuntimeError(
            f"train_loss takes a number out of a tensor ({error}), but params without values have none; give params "
            "that have, or take the number beforehand"
        ) from error
    found = replay.again(lambda: strategy.costs(looking, inputs))
    if not isinstance(found, Costs):
        kind = type(strategy).__name__
        raise TypeError(f"{kind}.costs must return hyperopt_ftp.hyper.Costs, got a {type(found).__name__}")
    memory, trial = found.memory, found.trial
    if memory is None and trial is not None:
        memory = replay.again(lambda: trial_peak(inputs.params, trial))
    if memory is None:
        memory = replay.again(lambda: memory_of_steps(strategy, problem, inputs, len(inputs.batches)))
    return Estimate(memory, found.gradients, found.products, found.plan)
