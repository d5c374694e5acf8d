"""The inner problem of an optimizer and a loss, and what looks at them; in one process or many, or on shards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import tree
from ..optimizers.by_rule import entry_rule
from ..types import Optimizer
from .core.inputs import TrainInputs
from .core.leaves import requiring_grad
from .core.problem import Guards, InnerProblem
from .core.torch_private import under_transform
from .distributed.data_parallel import DataParallel, agreed, shards_differ
from .distributed.sharded_params import of_whole, on_shards
from .guards.loss import GuardedLoss
from .guards.operations import refuse_other_weights
from .guards.update import LOOKS, GuardedUpdate
from .guards.verdict import Needs, Verdict, verdict_on


def problem_of(
    optimizer: Optimizer, train_loss: Callable[..., Tensor], sharded: bool = False, before: int = 0
) -> InnerProblem:
    """``sharded``: whether params are DTensors; ``before``: see :class:`InnerProblem`."""
    processes = train_loss if isinstance(train_loss, DataParallel) else None
    local = train_loss if processes is None else processes.loss
    if sharded:
        optimizer = optimizer._replace(update=on_shards(optimizer.update))

    def everywhere(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        if processes is not None:
            return partial(processes.whole, loss)
        return of_whole(loss) if sharded else loss

    def refuse_shards(name: str) -> None:
        if processes is not None:
            raise shards_differ(f"{name}, unlike Unroll,")

    def guard(problem: InnerProblem, inputs: TrainInputs, needs: dict[str, bool]) -> InnerProblem:
        return _guarded(problem, local, everywhere, inputs, Needs(**needs))

    return InnerProblem(
        optimizer, everywhere(local), alone=not (processes or sharded), agreed=partial(agreed, train_loss),
        refuse_shards=refuse_shards, guard=guard, before=before,
    )  # fmt: skip


def _guarded(
    problem: InnerProblem, local: Callable[..., Tensor], everywhere: Callable[..., Any], inputs: TrainInputs,
    needs: Needs,
) -> InnerProblem:  # fmt: skip
    update, batches = problem.optimizer.update, inputs.batches
    rule = entry_rule(update)
    trusted = rule is not None and rule.ours
    # What made the state that all updates get, where there is one such state. Then one look is enough.
    maker: Any = None
    if needs.plain_loop and len(batches) == 1 and not trusted:
        maker = problem.optimizer.init if inputs.state is None else update if problem.before else None
    if needs.derived or torch.is_grad_enabled() or under_transform():
        # The first gradient is differentiated in params where these are asked for alone.
        once = len(batches) == 1 and not (needs.differentiates_whole_gradient or requiring_grad(inputs.params))
        needs = needs._replace(constant_gradient=needs.constant_gradient or once)
        first, numbers, seen = None, [], isinstance(batches, (list, tuple))
        if seen:  # shapes of the first; and numbers, flags or attributes of all
            others = [x for b in batches[1:] for x in tree.leaves(b)]
            first, numbers = batches[0], [x for x in others if not isinstance(x, Tensor) or x.__dict__]
        given = (*inputs[:3], first, numbers, maker)
        if trusted:  # then the loss alone is looked at
            own = (inputs.hparams["loss"],) if "loss" in inputs.hparams else ()
            given = inputs.params, own, first, numbers
        verdict = verdict_on(local, None if trusted else update, needs, given, seen)
    else:  # values: nothing of the loss can be lost
        verdict, needs = Verdict(loss=True), needs._replace(closed=False)
    loss = GuardedLoss(local, verdict, needs)

    def guarded_update(f: Any) -> Any:
        return f if trusted and f is update else GuardedUpdate(f, verdict, needs, LOOKS if maker is None else 1)

    guards = Guards(
        problem, verdict, guarded_update, loss.before_step if needs.inside_function else None, refuse_other_weights,
        lambda: loss.leaves,
    )  # fmt: skip
    return replace(problem, train_loss=everywhere(loss), guards=guards)
