"""What goes into K steps of training, and what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NamedTuple

from torch import Tensor

from ... import tree
from ...types import HParams, Params, State, StateT, TreeT
from .leaves import detached, without_inference


class TrainInputs(NamedTuple):
    """All arguments of K steps of training; also a tree of their cotangents, by part."""

    hparams: HParams  # the optimizer's by name, and under "loss" the loss's own
    params: Params
    state: State
    batches: Any = None  # a sequence with one entry for each step


class BufferedState(NamedTuple):
    """The state of a training whose loss is of a module with buffers."""

    base: State  # the optimizer's
    buffers: dict[str, Tensor]


def _buffers(run: Any) -> Mapping[str, Tensor]:
    """Those of the module after the last step, by name: none, unless the loss is one of :func:`of_module`."""
    return run.state.buffers if isinstance(run.state, BufferedState) else {}


if TYPE_CHECKING:

    class TrainOutputs(NamedTuple, Generic[TreeT, StateT]):
        """The class below with the types of its parts, as :class:`~hyperopt_ftp.Optimizer` has them."""

        params: TreeT
        state: StateT
        losses: Any

        def detached(self) -> TrainOutputs[TreeT, StateT]: ...
        @property
        def buffers(self) -> Mapping[str, Tensor]: ...

else:

    class TrainOutputs(NamedTuple):
        """Where training ended."""

        params: Params
        state: State
        losses: Any  # a tensor of shape (K,): the training loss before each step; never differentiated

        def detached(self) -> TrainOutputs:
            """The same without graphs, for the next training to begin there."""
            return detached(self)

        buffers = property(_buffers)


@dataclass(frozen=True)
class Step(Generic[TreeT, StateT]):
    """One step of :func:`~hyperopt_ftp.steps`."""

    k: int  # counts from 0
    params: TreeT  # after the step
    state: StateT
    loss: Tensor  # before it, shape (), without a graph

    @property
    def buffers(self) -> Mapping[str, Tensor]:
        """After the step, as those of a run."""
        return _buffers(self)


class ConstantBatches:
    """The user's own sequence of batches, which is read one by one; no derivative can be taken in them."""

    def __init__(self, batches: Any) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, k: int) -> Any:
        batch = without_inference(self._batches[k])
        for x in tree.leaves(batch):
            if isinstance(x, Tensor) and x.requires_grad:
                raise ValueError(
                    f"batches is a sequence that is no list, and a tensor of shape {tuple(x.shape)} of its step {k} "
                    "requires grad: its derivative would be lost. Pass a list, or hold it fixed by detach()"
                )
        return batch
