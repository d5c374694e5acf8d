"""Losses of modules: params and buffers are put in for a call, and buffers go from step to step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.nn.parameter import is_lazy
from torch.nn.utils.stateless import _reparametrize_module

from .. import tree
from ..calls import did_you_mean, explained, few, shown, warn_caller
from ..dtensors import is_dtensor
from ..types import HParams, Optimizer, Params, State
from .core.graph import made_from
from .core.inputs import BufferedState, TrainOutputs
from .core.memory import storage_of
from .core.problem import no_graph
from .core.replay import in_modes, modes_of
from .core.torch_private import (
    by_place,
    differentiated_outside,
    has_graph,
    has_saved_tensor_hooks,
    inside_mode,
    top_level,
    under_transform,
)
from .distributed.data_parallel import DataParallel
from .guards.calls import watched_calls

#: Holds the numbers of every buffer; of integers in two parts.
_WIDE = torch.float64
_CHECKPOINTS = (
    "the module checkpoints its activations (gradient_checkpointing_enable(), torch.utils.checkpoint), or has other "
    "hooks on them: its backward pass would compute them again with the module's own weights. Switch that off, and "
    "take hft.remat_layers(net, pattern), which saves memory of second derivatives too"
)


class Carried(NamedTuple):
    """What is trained where buffers go from step to step: the gradient in these is their next value."""

    params: Params
    buffers: Tensor  # all of them, as one vector


@explained("of_module(net, lambda m, batch: loss_of(m(batch[0]), batch[1]))")
def of_module(
    net: nn.Module, method: Callable[..., Tensor] | None = None, buffers: Mapping[str, Tensor] | None = None
) -> OfModule:
    """A training loss of a module, which :func:`train` and the others take: ``loss(params, batch[, own]) -> scalar``.

    For the time of a call ``params``, a dict by name, stand in the place of the module's parameters, and copies in that
    of its buffers, so the module is not changed. A tied weight is one, under whichever of its names it is given.
    Names that ``params`` lacks stay as they are in the module.

    In a training, step k+1 begins with the buffers that step k has left, as in a loop by hand: BatchNorm's statistics.
    They are in ``run.buffers``, and in ``run.state`` for the next ``train(..., state=run.state)``. They are constants.
    Buffers that are views of one another are apart from the first step on.
    Over the processes of :func:`data_parallel` they are averaged. A call outside of a training begins with those in the
    module, or in ``params``: ``loss({**run.params, **run.buffers}, batch)``. The outer loss of :func:`hypergradient`
    and :func:`bilevel` finds the module with those that training has left.

    Args:
        net: a training keeps the modes, ``train()`` or ``eval()``, in which it finds it, also in its backward pass.
        method: ``method(net, batch)``, or ``method(net, batch, own)`` with the loss's hparams, such as
            ``lambda m, batch: m.elbo(batch)``. ``None``: ``net(batch)``.
        buffers: first values by name; ``None``, and names that are absent: those that the module has when training
            begins. All that are in its ``state_dict()`` are carried, except complex ones, which are constants.

    Raises:
        TypeError: no module or method; when called, params that are no dict.
        RuntimeError: when called, a module that checkpoints its activations: take :func:`remat_layers`.
        ValueError: buffers that the module lacks, or that are in the memory of a param; when called, names that it
            lacks, or a complex buffer that the loss changes; when trained, buffers among the params, or of another
            module in the state; a buffer that a step gives a graph or another shape;
            sharded params; a ``data_parallel(reduction="sum")`` loss.

    Warns:
        UserWarning: another function around it is the training loss, so that what it writes into buffers is lost.

    >>> import torch, hyperopt_ftp as hft
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    >>> loss = hft.of_module(net, lambda m, batch: (m(batch) ** 2).mean())
    >>> run = hft.train(hft.sgd(lr=0.1), loss, dict(net.named_parameters()), [torch.randn(4, 2)] * 5)
    >>> run.buffers["1.num_batches_tracked"]
    tensor(5)
    >>> net.load_state_dict({**run.params, **run.buffers})
    <All keys matched successfully>
    """
    if not isinstance(net, nn.Module) or not (method is None or callable(method)):
        raise TypeError(f"of_module takes a torch.nn.Module, and a function of it, got {shown(net)}, {shown(method)}")
    loss = OfModule(net, method, dict(buffers or {}))
    _check_names("buffers", loss.buffers, loss.carried)
    return loss


class OfModule:
    """What :func:`of_module` returns."""

    def __init__(self, net: nn.Module, method: Callable[..., Tensor] | None, buffers: dict[str, Tensor]) -> None:
        self.net: nn.Module = net
        self.method: Callable[..., Tensor] | None = method
        self.buffers: dict[str, Tensor] = buffers
        saved, self._tensors = net.state_dict(), _tensors_of(net)
        #: Buffers that a checkpoint has, which go from step to step.
        self.carried: dict[str, Tensor] = {n: x for n, x in net.named_buffers() if n in saved and not x.is_complex()}
        self._constant = [n for n, x in net.named_buffers() if n in saved and x.is_complex()]
        at = {_place_of(p): n for n, p in net.named_parameters()}
        for name, x in net.named_buffers():
            if (other := at.get(_place_of(x))) and x.numel():
                raise ValueError(
                    f"the buffer {name!r} is in the memory of the parameter {other!r}, and training would take them "
                    "apart: make it a copy, or a property that reads the parameter"
                )
        first: dict[int, str] = {}  # of the names of a tied weight
        self._first = {name: first.setdefault(id(x), name) for name, x in self._tensors.items()}
        self._carries: bool = bool(self.carried) or any(name != other for name, other in self._first.items())

    @property
    def __wrapped__(self) -> Callable[..., Any]:  # where inspect.signature looks
        return self.method or type(self.net).forward

    def __call__(self, params: Any, batch: Any, *own: Any) -> Tensor:
        given = self._once(params)
        with torch.no_grad():
            copies = {n: given.get(n, self.net.get_buffer(n)).clone() for n in self.carried}
        values = {**given, **copies}
        loss = self._at(values, (), batch, own)
        lost = {n: x for n, x in copies.items() if n not in given}
        if any(values[n] is not x or x._version for n, x in lost.items()) and inside_mode(watched_calls):
            warn_caller(
                f"train_loss calls the loss of a module inside another function, so what it writes into {few([*lost])} "
                "is lost after each step: train hands buffers on for what of_module returns alone. Put what you add "
                "into its method, hft.of_module(net, lambda m, batch: ...), and hold params by hft.partition and "
                "hft.frozen(); where no loss is in eval mode they do not matter: filter this warning"
            )
        return loss

    def carrying(
        self, optimizer: Optimizer, train_loss: Any, params: Any, state: Any
    ) -> tuple[tuple[Optimizer, Any, Any, State], Callable[[TrainOutputs], TrainOutputs]]:
        """The arguments of a training whose params carry the buffers, and what takes these out of its outputs."""
        self.carried = {n: self.net.get_buffer(n) for n in self.carried}  # which may be of another dtype by now
        step = partial(self.step, modes_of(self.net))
        train_loss = step if train_loss is self else replace(train_loss, loss=step)
        if not self._carries:
            return (optimizer, train_loss, params, state), lambda run: run
        sums = isinstance(train_loss, DataParallel) and train_loss.reduction == "sum"
        if sums or any(map(is_dtensor, tree.leaves(params))):
            raise ValueError("buffers are averaged over processes: give plain params, and reduction='mean'")
        once, state = self._once(params), state if isinstance(state, BufferedState) else self.buffered(state)
        if both := once.keys() & self.carried.keys():
            raise ValueError(f"params has the buffers {sorted(both)}, which are not trained: give named_parameters()")
        if other := sorted(state.buffers.keys() ^ self.carried.keys()):
            raise ValueError(f"state has the buffers of another module: only one of them has {few(other)}")

        def back(run: TrainOutputs) -> TrainOutputs:
            under = {self._first[n]: x for n, x in run.params.params.items()}
            new = {n: under[self._first[n]] for n in params}
            left = self._apart(run.params.buffers.detach())
            return TrainOutputs(new, BufferedState(run.state, left) if left else run.state, run.losses)

        at = Carried(once, self._joined(state.buffers))
        return (_beside_buffers(optimizer), train_loss, at, state.base), back

    def buffered(self, state: State) -> BufferedState:
        """That of an optimizer with the buffers where training begins."""
        return BufferedState(state, {n: self.buffers.get(n, self.net.get_buffer(n)) for n in self.carried})

    def step(self, modes: Any, at: Any, batch: Any, *own: Any) -> Tensor:
        """The loss of a step. Its derivative in the buffers is what the step makes of them, since they add 0 to it."""
        if not self._carries:
            return self._at(self._once(at), modes, batch, own)
        with torch.no_grad():
            held = at.buffers.detach().clone()  # no_grad does not end tangents
        values = {**at.params, **self._apart(held)}
        loss = self._at(values, modes, batch, own)
        traced = torch.compiler.is_compiling()
        if not isinstance(loss, Tensor) or not (traced or has_graph(loss)):
            return loss  # which is refused
        if not traced and inside_mode(watched_calls) and not _is_made_of(loss, [*at.params.values()]):
            raise no_graph()  # of params: what is added has one of buffers
        for name, was in self.carried.items():
            x = values[name]
            graph = x.requires_grad or (not traced and differentiated_outside(x, top_level()))
            if graph or x.shape != was.shape:
                raise ValueError(
                    f"the buffer {name!r} goes to the next step as a constant of the shape {tuple(was.shape)}, and a "
                    f"step has made it {tuple(x.shape)}, requires_grad={graph}: write into it under torch.no_grad(), "
                    "as BatchNorm does"
                )
        return loss + ((at.buffers - held) * self._joined(values).to(held.device)).sum().to(loss)

    def _at(self, values: dict[str, Tensor], modes: Any, batch: Any, own: tuple[Any, ...]) -> Any:
        """The loss with such params and buffers, which it changes."""
        net, method = self.net, self.method
        free = torch.compiler.is_compiling() or has_saved_tensor_hooks()  # of the caller's
        # Complex ones are constants, of which the loss gets copies. No program can have any (torch 2.13).
        with torch.inference_mode(False) if self._constant else nullcontext():  # where writes are counted
            held = {n: net.get_buffer(n).clone() for n in self._constant}
        before = {n: x._version for n, x in held.items()}
        there = by_place(net, {**values, **held})
        try:
            with (
                in_modes(modes),
                nullcontext() if free else disable_saved_tensors_hooks(_CHECKPOINTS),
                _reparametrize_module(net, there),
            ):
                loss = method(net, batch, *own) if method else net(batch, *own)
        finally:
            values.update({n: there[n] for n in values if n in there})  # a module may put in another tensor, too
        for name, x in held.items():
            if there[name] is not x or x._version != before[name]:
                raise ValueError(
                    f"the loss changes the buffer {name!r}, which is complex, and such do not go from step to step: "
                    "hold torch.view_as_real of it in the buffer"
                )
        return loss

    def _once(self, params: Any) -> dict[str, Tensor]:
        """Params by name, of a tied weight the first."""
        if not isinstance(params, Mapping):
            raise TypeError(f"the loss of a module takes a dict of its params by name, got a {type(params).__name__}")
        _check_names("params", params, self._tensors)
        seen: dict[str, str] = {}
        return {n: x for n, x in params.items() if seen.setdefault(self._first[n], n) == n}

    def _joined(self, buffers: Mapping[str, Tensor]) -> Tensor:
        # 0 times an infinite entry, of a mask or a minimum that has seen nothing, would be NaN.
        rows = [torch.nan_to_num(_numbers(buffers[name]).reshape(-1).to(_WIDE), nan=math.nan) for name in self.carried]
        return torch.cat(rows) if rows else torch.zeros(0, dtype=_WIDE)

    def _apart(self, vector: Tensor) -> dict[str, Tensor]:
        vector = torch.where(vector.abs() == torch.finfo(_WIDE).max, 2 * vector, vector)  # infinite again
        like, parts = [*self.carried.values()], vector.split([_numbers(x).numel() for x in self.carried.values()])
        return {name: _buffer(part, x) for name, part, x in zip(self.carried, parts, like, strict=True)}


def _is_made_of(loss: Tensor, params: Sequence[Tensor]) -> bool:
    """Whether it depends on any of them; true under a transform, which hides the graph."""
    ids = {id(x) for x in params}
    return under_transform() or any(id(x) in ids for x in made_from([loss], params))


def _place_of(x: Tensor) -> tuple[int, Any]:
    if is_lazy(x) or x.layout is not torch.strided:
        return id(x), 0
    return storage_of(x), x.storage_offset()


def _numbers(x: Tensor) -> Tensor:
    """Of an integer, which may be beyond what float64 holds, its upper and lower 32 bits."""
    return x if x.is_floating_point() else torch.stack([x.long() >> 32, x.long() & 0xFFFFFFFF])


def _buffer(numbers: Tensor, like: Tensor) -> Tensor:
    if not like.is_floating_point():
        high, low = numbers.round().long().view(2, like.numel())
        numbers = (high << 32) + low
    return numbers.to(like.dtype, copy=True).reshape(like.shape)


def _tensors_of(net: nn.Module) -> dict[str, Tensor]:
    return {**dict(net.named_parameters(remove_duplicate=False)), **dict(net.named_buffers(remove_duplicate=False))}


@explained("load(net, run)")
def load(net: nn.Module, run: TrainOutputs | Mapping[str, Any]) -> None:
    """Put what was trained into a module, in place: params and buffers of a run, or tensors by name, tied ones by any.

    Raises:
        TypeError: no module, no run.
        ValueError: no tensors, names that the module lacks, or tensors of another shape; nothing is changed then.

    Call ``backward()`` first if the run began at the module's own parameters: its graph may need their values.

    >>> import torch, hyperopt_ftp as hft
    >>> net = torch.nn.Linear(2, 1)
    >>> loss = hft.of_module(net, lambda m, batch: m(batch).square().mean())
    >>> hft.load(net, hft.train(hft.sgd(lr=0.1), loss, dict(net.named_parameters()), [torch.ones(4, 2)] * 100))
    >>> bool(net(torch.ones(1, 2)).abs() < 1e-3)
    True
    """
    if not isinstance(net, nn.Module) or not isinstance(run, (TrainOutputs, Mapping)):
        got = f"{type(net).__name__} and {type(run).__name__}"
        raise TypeError(f"load takes a module, then a run or tensors by name, got {got}")
    given = {**tree.by_path(run.params), **run.buffers} if isinstance(run, TrainOutputs) else dict(run)
    tensors = _tensors_of(net)
    if not given:
        raise ValueError(f"load got no tensors, so the module would stay as it is; it has {few(list(tensors))}")
    _check_names("run", given, tensors)
    with torch.no_grad():
        for name, x in given.items():
            tensors[name].copy_(x)


def _check_names(what: str, given: Mapping[str, Any], known: Mapping[str, Tensor]) -> None:
    for name, x in given.items():
        if name not in known:
            hint = did_you_mean(name, known) or f"; there are {few(list(known))}"
            raise ValueError(f"{what} has {name!r}, and the module no such tensor{hint}")
        if not isinstance(x, Tensor) or x.shape != known[name].shape:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"{what}: {name!r} must be a tensor of shape {tuple(known[name].shape)}, got {got}")


def _beside_buffers(optimizer: Optimizer) -> Optimizer:
    def init(params: Carried, hparams: HParams | None = None) -> State:
        return optimizer.init(params.params, hparams)

    def update(grads: Carried, state: State, params: Any, hparams: HParams | None = None) -> tuple[Any, State]:
        new, state = optimizer.update(grads.params, state, params.params, hparams)
        return Carried(new, grads.buffers), state

    return Optimizer(init, update, optimizer.hparams)


def loss_of_module(train_loss: Any) -> OfModule | None:
    """The loss of a module, also in a data-parallel one."""
    local = train_loss.loss if isinstance(train_loss, DataParallel) else train_loss
    return local if isinstance(local, OfModule) else None


def after(train_loss: Any, run: TrainOutputs) -> AbstractContextManager[Any]:
    """A context in which the module of a loss has the buffers that training has left, as after a loop by hand."""
    module = loss_of_module(train_loss)
    if module is None or not run.buffers:
        return nullcontext()
    left = {name: x.clone() for name, x in run.buffers.items()}  # into which it may write
    return _reparametrize_module(module.net, by_place(module.net, left))


def beginning(train_loss: Any, state: State) -> State:
    """The state of an optimizer where training begins, with the buffers of the loss."""
    module = loss_of_module(train_loss)
    return module.buffered(state) if module is not None and module.carried else state
