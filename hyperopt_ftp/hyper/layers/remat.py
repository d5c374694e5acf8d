"""A checkpoint that saves memory under second derivatives too: of a layer and its backward pass arguments are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import compress
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.autograd import Function, forward_ad

from ..core.graph import stand_in
from ..core.leaves import OptionalTensors
from ..core.torch_private import is_batched, outside_transforms, under_transform
from .layer_call import LayerCall, Moment, call_of

T = TypeVar("T")


@_disable_dynamo
def remat(layer: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    """``layer(*args, **kwargs)``, of which only the arguments are kept for derivatives of first and second order.

    ``torch.utils.checkpoint`` saves nothing under a second derivative: the graph of the backward pass holds the
    activations that it has made again. Here the backward pass is recomputed, too. With ``y = f(x)``, and cotangents v
    of y and u of the gradient::

        forward     keeps x
        backward    f again, then g = vjp f(x; v);                              keeps x and v
        of that     f and g again with a graph, then d<u, g> / d(x, v);         keeps nothing

    A hypergradient through deep networks takes about the memory of plain training. A product with second derivatives
    takes about five gradients of time, not three; a plain gradient one more forward pass. Small networks gain nothing.

    Args:
        layer: a function, a module, or a method of one. The parameters and buffers of a module count as arguments, also
            those that ``functional_call`` has put there.
        args, kwargs: what it is called with, among it all tensors that a derivative is taken in: in lists, tuples,
            dicts, and classes that ``torch.utils._pytree`` knows.

    Returns:
        What the layer returns.

    Raises:
        ValueError: the layer uses another tensor that requires grad, whose derivative would be lost.
        TypeError: an argument is an object that holds tensors where they cannot be found, such as a cache of keys.
        RuntimeError: the layer writes in place into what it has not made (BatchNorm in training), checkpoints
            activations itself, has no second derivative (where one is asked for), or gives something else when it is
            computed again (random numbers of its own).

    Random numbers (dropout) and autocast are those of the first run. Attention goes by its formula, as in
    :func:`train`. Remats may lie in one another: the outer one then keeps its own arguments alone. Under a
    ``torch.func`` transform the layer is called as it is; a third derivative is right, and saves nothing.

    >>> import torch, hyperopt_ftp as hft
    >>> def layer(w, x): return torch.tanh(x @ w)
    >>> w = torch.full((2, 2), 0.5, dtype=torch.float64, requires_grad=True)
    >>> x = torch.ones(3, 2, dtype=torch.float64)
    >>> def curvature(call):
    ...     (g,) = torch.autograd.grad(call(w, call(w, x)).sum(), w, create_graph=True)
    ...     return torch.autograd.grad(g.square().sum(), w)[0]
    >>> torch.allclose(curvature(layer), curvature(lambda w, x: hft.remat(layer, w, x)), rtol=1e-12, atol=0)
    True
    """
    if not torch.is_grad_enabled() or under_transform() or forward_ad._current_level >= 0:
        return layer(*args, **kwargs)
    call, tensors = call_of(layer, args, kwargs)
    if not any(x.requires_grad for x in tensors):
        return layer(*args, **kwargs)
    return call.result(RematLayer.apply(call, *tensors))


class RematLayer(Function):
    """A layer as a node, which keeps its arguments."""

    @staticmethod
    def forward(ctx: Any, call: LayerCall, *xs: Tensor) -> tuple[Tensor, ...]:
        ctx.call = call
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*xs)
        found = call.first(_inputs(xs, ctx.needs_input_grad[1:]))
        ys = tuple(y.detach() for y in found)
        ctx.mark_non_differentiable(*(y for y, x in zip(ys, found, strict=True) if not x.requires_grad))
        return ys

    @staticmethod
    def backward(ctx: Any, *vs: Tensor | None) -> tuple[Any, ...]:
        _refuse_old_vmap(vs)
        xs, need, further = ctx.saved_tensors, ctx.needs_input_grad[1:], torch.is_grad_enabled()
        there, given = [v is not None for v in vs], [v for v in vs if v is not None]
        if further and not under_transform():
            return (None, *RematBackward.apply(ctx.call, need, there, *xs, *given))
        with outside_transforms():  # which go over cotangents, in a graph from outside
            at = _inputs(xs, need, further)
            ys = ctx.call.again(at)
        return (None, *_pull(compress(ys, there), given, at, need, further))


class RematBackward(Function):
    """The backward pass of a layer as a node, which keeps arguments and cotangents."""

    @staticmethod
    def forward(ctx: Any, call: LayerCall, need: Any, there: Any, *tensors: Tensor) -> tuple[Tensor | None, ...]:
        ctx.call, ctx.need, ctx.there, ctx.begin = call, need, there, Moment.now()
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        at = _inputs(tensors[: len(need)], need)
        return tuple(_pull(compress(call.again(at, twice=True), there), tensors[len(need) :], at, need))

    @staticmethod
    def backward(ctx: Any, *us: Tensor | None) -> tuple[Any, ...]:
        _refuse_old_vmap(us)
        count, asked, further = len(ctx.need), ctx.needs_input_grad[3:], torch.is_grad_enabled()
        with outside_transforms(), torch.enable_grad():
            at = _inputs(ctx.saved_tensors, (*ctx.need, *asked[count:]), further)
            xs, vs = at[:count], at[count:]
            ys = compress(ctx.call.again(xs), ctx.there)
            grads = ctx.begin.run(lambda: _pull(ys, vs, xs, ctx.need, True))
        return (None, None, None, *_pull(grads, us, at, asked, further))


def _refuse_old_vmap(cotangents: Sequence[Tensor | None]) -> None:
    if not under_transform() and any(v is not None and is_batched(v) for v in cotangents):
        raise RuntimeError(
            "hft.remat: several cotangents at once by is_grads_batched (as of torch.autograd.functional with "
            "vectorize=True) cannot be taken; take torch.func.vmap over torch.autograd.grad, or one after the other"
        )


def _inputs(tensors: Sequence[Tensor], need: Sequence[bool], further: bool = False) -> list[Tensor]:
    """Of a graph of its own; ``further``: a derivative goes on from the tensors as they are."""
    if further:
        return [x.view_as(x) for x in tensors]
    return [stand_in(x) if needed else x.detach() for x, needed in zip(tensors, need, strict=True)]


def _pull(
    ys: Iterable[Tensor | None], vs: Sequence[Tensor | None], at: Sequence[Tensor], asked: Sequence[bool],
    create_graph: bool = False,
) -> OptionalTensors:  # fmt: skip
    """Vector-Jacobian product, as plain autograd makes it; ``None``: zero, or not asked for."""
    pairs = [(y, v) for y, v in zip(ys, vs, strict=True) if y is not None and v is not None and y.requires_grad]
    wanted = [a and x.requires_grad for x, a in zip(at, asked, strict=True)]
    if not pairs or not any(wanted):
        return [None] * len(at)
    outputs, cotangents = zip(*pairs, strict=True)
    inputs = compress(at, wanted)
    found = iter(torch.autograd.grad(outputs, [*inputs], cotangents, create_graph=create_graph, allow_unused=True))
    return [next(found) if yes else None for yes in wanted]
