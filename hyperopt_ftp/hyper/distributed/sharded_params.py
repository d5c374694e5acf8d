"""Training of sharded params (DTensors): what must be a DTensor, and what must be the same on each process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ... import tree
from ...dtensors import Layout, in_layout_of, is_dtensor, layout, local, replicated, whole, without_partials
from ...types import Optimizer, Params, State, TreeT, UpdateFn
from ..core.inputs import TrainInputs, TrainOutputs
from ..core.problem import without_loss
from ..core.torch_private import under_transform


def on_mesh(inputs: TrainInputs, optimizer: Optimizer) -> TrainInputs:
    """The inputs, with hparams and state as DTensors as params are: torch does not combine the two kinds.

    Batches are for the loss, and do not change.
    """
    at = _mesh_of(inputs.params)
    if under_transform():
        raise RuntimeError(
            "params are DTensors, and torch.func has no rules for them (torch 2.13); leave the transform, or train "
            "plain params, the same on each process, with hft.data_parallel(loss)"
        )
    if inputs.state is None:
        inputs = inputs._replace(state=optimizer.init(inputs.params, without_loss(inputs.hparams)))
    hparams, state = tree.map_tree(lambda x: without_partials(replicated(x, at.mesh)), (inputs.hparams, inputs.state))
    return inputs._replace(hparams=hparams, state=state)


def refuse_other_processes(run: TrainOutputs, inputs: TrainInputs) -> TrainOutputs:
    """``run``, or an error if losses or hparams differ between processes."""
    at = _mesh_of(inputs.params)
    _check_same(run.losses, at, "the training losses are", _LOSS)
    hparams = [local(x.detach()) for x in tree.tensors(inputs.hparams)]
    numbers = torch.stack([x.double().sum().to(run.losses.device) for x in hparams])
    _check_same(numbers, at, "hparams are", "give each process the same")
    return run


def whole_params(params: TreeT) -> TreeT:
    """Params as plain tensors: the same tree where they are."""
    return tree.map_tree(whole, params) if any(map(is_dtensor, tree.leaves(params))) else params


def same_everywhere(value: Tensor, params: Params) -> Tensor:
    """The outer loss, or an error if params are sharded and it differs between processes."""
    at = layout(tree.leaves(params)[0])
    if at is not None:
        _check_same(value.detach().reshape(1), at, "the outer loss is", _LOSS)
    return value


def on_shards(update: UpdateFn[Any]) -> UpdateFn[Any]:
    """An update of DTensors that keeps the layout of params and state."""

    def settling(grads: Params, state: State, params: Params, hparams: Any = None) -> tuple[Params, State]:
        new, after = update(grads, state, params, hparams)
        return tree.map_tree(in_layout_of, new, params), tree.map_tree(without_partials, after)

    return settling


def of_whole(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A loss that gets whole, plain tensors.

    Torch 2.13 computes wrong derivatives of some operations with DTensors without an error: those of mse_loss and
    smooth_l1_loss of shards, and of amax, for instance; and means over shards of different sizes. Updates use them too:
    tests compare those of the package with plain tensors.
    """
    return lambda *arguments: loss(*tree.map_tree(whole, arguments))


def _mesh_of(params: Params) -> Layout:
    """How the first param lies over processes, on the mesh of all."""
    leaves = tree.leaves(params)
    found = [at for at in map(layout, leaves) if at is not None]
    if len(found) < len(leaves):
        raise ValueError(
            "some params are DTensors and others are plain tensors, which torch does not add; make all of them "
            "DTensors: distribute_tensor(x, mesh, [Replicate()]) for those that are not cut"
        )
    if any(at.mesh != found[0].mesh for at in found):
        raise ValueError("params are DTensors of different device meshes; distribute all of them over one")
    if any(x.is_partial() for at in found for x in at.placements):
        raise ValueError("a param is a DTensor that is Partial, a sum still to be made; redistribute it as Shard")
    from torch.distributed.tensor import _redistribute

    if not hasattr(_redistribute, "NestedRedistribute"):
        raise RuntimeError(f"torch {torch.__version__} has no second derivatives of DTensors; torch 2.13 has")
    return found[0]


_LOSS = "hft.data_parallel(loss) makes of losses on each process's shard that on the whole batch"


def _check_same(values: Tensor, at: Layout, what: str, advice: str) -> None:
    """One collective for each dimension of the mesh."""
    wide = values.detach().double().nan_to_num(torch.finfo(torch.float64).max).reshape(-1)
    most = torch.cat([wide, -wide])
    for dim in range(at.mesh.ndim):
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX, at.mesh.get_group(dim))
    high, low = most[: len(wide)], -most[len(wide) :]
    slack = torch.finfo(values.dtype).eps ** 0.75 * high.abs().maximum(low.abs())
    if bool((high - low > slack).any()):
        i = int((high - low - slack).argmax())
        raise ValueError(
            f"{what} not the same on each process, from {low[i].item():.9g} to {high[i].item():.9g}, but params are "
            f"sharded; {advice}"
        )
