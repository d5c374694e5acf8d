"""What a hypergradient will take of memory and time, before it is computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException

from ... import tree
from ...calls import explained
from ...dtensors import is_dtensor
from ...types import HParams, Optimizer, StateT, TreeT, check_optimizer
from ..core.inputs import TrainInputs, TrainOutputs
from ..core.leaves import detached_leaves
from ..core.problem import InnerProblem
from ..core.replay import Replay
from ..core.strategy import Strategy, check_strategy
from ..distributed.data_parallel import DataParallel
from ..guards.arguments import check_batches, check_hparams
from ..hypergradient import value_and_grad
from ..strategies.unroll import Unroll
from .fake_tensors import FakeParams
from .predict import FINDERS, Estimate, check_known


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

    The table shows the leading terms. The result itself is counted and measured: at most three steps are run, and the
    bytes of their tensors are counted. The random state does not change. ``Unroll()`` is the first row if all graphs
    are small, else the second.

    **Models too large for this machine.** Put the params on the meta device, or use fake tensors
    (``torch._subclasses.FakeTensorMode``). Then nothing is computed. The params' device counts as an accelerator, so
    ``offload`` moves points off it.

    Args:
        optimizer, train_loss, params, batches, over, hparams, state: as in :func:`hypergradient`. Only the first
            batches are used. For a loss by :func:`data_parallel`, only this process's part is run; other processes need
            not call.
        strategy: :class:`Unroll` (default) with any option but ``compile``, :class:`Forward`, :class:`Implicit` (all
            iterations are counted) or :class:`ZeroOrder`.

    Returns:
        An :class:`Estimate`.

    Raises:
        TypeError: your own strategy; params that are DTensors; as :func:`hypergradient`.
        ValueError: ``compile=True``, which one uncompiled step cannot predict; too little ``memory`` for
            ``Unroll(memory=)``; as :func:`hypergradient`.

    Not included: the outer loss, larger later batches, workspace inside kernels, a state that training makes itself,
    and the time of updates, of ``offload`` and of collectives.

    >>> import torch, hyperopt_ftp as hft
    >>> def loss(p, x): return (torch.tanh(x @ p["a"]) @ p["b"]).square().mean()
    >>> params = {"a": torch.empty(4096, 16384, device="meta"), "b": torch.empty(16384, 1, device="meta")}
    >>> batches = [torch.empty(64, 4096, device="meta")] * 100
    >>> found = hft.estimate(hft.adamw(), loss, params, batches, over="lr", strategy=hft.Unroll(checkpoint="sqrt"))
    >>> f"{found.memory / 2**30:.1f} GiB, {found.gradients} gradients, {found.products} products: {found.plan}"
    '18.1 GiB, 281 gradients, 99 products: the points of every n-th step, n = 10'
    """
    strategy = Unroll() if strategy is None else strategy
    check_strategy(strategy)
    check_known(strategy)
    check_optimizer("optimizer", optimizer)
    if any(map(is_dtensor, tree.leaves(params))):
        raise TypeError("estimate takes plain params, got DTensors; give whole ones, also on the meta device")
    local = train_loss.loss if isinstance(train_loss, DataParallel) else train_loss
    fake, measuring, batches = FakeParams(params), _Measuring(strategy), check_batches(batches)
    # A sequence of somebody's own is read entry by entry.
    known = fake.of(batches) if isinstance(batches, list) else batches
    full, first = fake.of((check_hparams(optimizer, hparams), state))
    with fake.mode(), suppress(_Done):
        value_and_grad(optimizer, local, lambda p: p, fake.of(params), known, over, full, first, measuring)
    return measuring.found[0]


class _Done(Exception):
    """All is measured."""


@dataclass(frozen=True)
class _Measuring(Strategy):
    """Predicts what another strategy takes, in place of training."""

    strategy: Strategy
    found: list[Estimate] = field(default_factory=list)

    @property
    def twice(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.strategy.twice

    def run(self, problem: InnerProblem, inputs: TrainInputs) -> tuple[TrainOutputs, Any]:
        knobs = detached_leaves(inputs.hparams, problem.needs_grad.hparams)[1]
        batch = detached_leaves(inputs.batches[0], problem.batch_needs_grad(0))[1]
        replay = Replay()
        first = partial(problem.gradient, inputs.params, batch, knobs, graph=True)
        try:
            replay.run(replay.now(), first)  # which raises what training would, before anything is measured
        except DataDependentOutputException as error:
            raise RuntimeError(
                f"train_loss takes a number out of a tensor ({error}), but params without values have none; give "
                "params that have, or take the number beforehand"
            ) from error
        self.found.append(
            replay.run(replay.now(), lambda: FINDERS[type(self.strategy)](self.strategy, problem, inputs))
        )
        raise _Done

    def pullback(self, problem: InnerProblem, residual: Any, cotangents: TrainOutputs) -> TrainInputs:
        raise AssertionError  # training has no end
