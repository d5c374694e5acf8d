"""The inner problem of a guarded optimizer and loss: in one process or many, on plain params or shards."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

from torch import Tensor

from .. import tree
from ..dtensors import is_dtensor
from ..types import Optimizer, Params
from .core.inputs import TrainInputs
from .core.problem import InnerProblem
from .distributed.data_parallel import DataParallel, agreed
from .distributed.dtensors import of_whole, on_shards
from .guards.loss import GuardedLoss
from .guards.update import GuardedUpdate
from .guards.verified import Asked, Verified


def guarded_problem(
    optimizer: Optimizer,
    train_loss: Callable[..., Tensor],
    params: Params,
    needs_grad: TrainInputs,
    verified: Verified,
    asked: Asked,
) -> InnerProblem:
    processes = train_loss if isinstance(train_loss, DataParallel) else None
    update, local = optimizer.update, train_loss if processes is None else processes.loss
    sharded = any(map(is_dtensor, tree.leaves(params)))
    update = on_shards(update) if sharded else update

    def whole(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        if processes is not None:
            return partial(processes.whole, loss)
        return of_whole(loss) if sharded else loss

    loss = GuardedLoss(local, verified, asked)
    bare = InnerProblem(update, whole(local), needs_grad, partial(agreed, train_loss), made=lambda: verified.bytes)
    return replace(
        bare,
        update_fn=GuardedUpdate(update, verified, asked) if asked.looked_at else update,
        train_loss=whole(loss),
        before_step=loss.before_step if asked.inside_function else None,
        during_gradient=loss.during_gradient if asked.derived else nullcontext,
        _bare=bare,
    )
