"""A checkpoint that saves memory under second derivatives too: of a layer and its backward pass arguments are kept.

Of a call, or of the modules of a network by their names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import compress
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import Function, forward_ad

from ...calls import explained
from ...optimizers.patterns import matcher, no_match
from ..core.leaves import OptionalTensors
from ..core.replay import Replay
from ..core.torch_private import is_batched, outside_transforms, uncompiled, under_transform
from ..guards.graphs import refuse_once_differentiable
from .layer_call import LayerCall, apart, call_of

T = TypeVar("T")


@uncompiled
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

    Random numbers (dropout), autocast and the mode of a module, ``train()`` or ``eval()``, are those of the first run.
    Attention goes by its formula, as in :func:`train`. Remats may lie in one another: the outer one then keeps its own
    arguments alone. Under a ``torch.func`` transform the layer is called as it is. Higher derivatives keep arguments
    alone, too.

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
    return call.result(Remat.apply(call, *tensors))


class Remat(Function):
    """A call as a node, which keeps its tensors alone; so does the backward pass through it."""

    @staticmethod
    def forward(ctx: Any, call: LayerCall | Pullback, *tensors: Tensor) -> tuple[Tensor | None, ...]:
        ctx.call = call
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        return tuple(None if y is None else y.detach() for y in call.first(tensors))

    @staticmethod
    def backward(ctx: Any, *vs: Tensor | None) -> tuple[Any, ...]:
        if not under_transform() and any(v is not None and is_batched(v) for v in vs):
            raise RuntimeError(
                "hft.remat: several cotangents at once by is_grads_batched (as of torch.autograd.functional with "
                "vectorize=True) cannot be taken; take torch.func.vmap over torch.autograd.grad, or one after the other"
            )
        back = Pullback(ctx.call, ctx.needs_input_grad[1:], [v is not None for v in vs])
        tensors = [*ctx.saved_tensors, *(v for v in vs if v is not None)]
        further = torch.is_grad_enabled() and not under_transform()
        return (None, *(Remat.apply(back, *tensors) if further else back.first(tensors)))


class Pullback:
    """The backward pass through a call, as a call: of its tensors, and of the cotangents that are there."""

    def __init__(self, call: LayerCall | Pullback, need: Sequence[bool], there: Sequence[bool]) -> None:
        self._call, self._need, self._there, self._begin = call, need, there, Replay()

    def first(self, tensors: Sequence[Tensor]) -> OptionalTensors:
        count = len(self._need)
        with outside_transforms():  # which go over cotangents, in a graph from outside
            xs = apart(tensors[:count])
        return self._pulled(xs, tensors[count:], torch.is_grad_enabled())

    def again(self, tensors: Sequence[Tensor]) -> OptionalTensors:
        count = len(self._need)
        return self._begin.again(lambda: self._pulled(tensors[:count], tensors[count:], True))

    def _pulled(self, xs: Sequence[Tensor], vs: Sequence[Tensor], create_graph: bool) -> OptionalTensors:
        """As plain autograd makes it; ``None``: zero, or not asked for."""
        with outside_transforms(), torch.enable_grad():
            ys = compress(self._call.again(xs), self._there)
        pairs = [(y, v) for y, v in zip(ys, vs, strict=True) if y is not None and y.requires_grad]
        wanted = [need and x.requires_grad for x, need in zip(xs, self._need, strict=True)]
        if not pairs or not any(wanted):
            return [None] * len(xs)
        for y, _ in pairs if create_graph else ():
            refuse_once_differentiable(y)
        outputs, cotangents = zip(*pairs, strict=True)
        inputs = [*compress(xs, wanted)]
        found = iter(torch.autograd.grad(outputs, inputs, cotangents, create_graph=create_graph, allow_unused=True))
        return [next(found) if yes else None for yes in wanted]


@explained('remat_layers(net, "encoder.layer.*")')
def remat_layers(net: nn.Module, pattern: str) -> list[str]:
    """Let modules of a network go through :func:`remat`, in place: its code needs no change.

    Of each only the arguments are kept for derivatives of first and second order. Parameters keep their names, and a
    copy of the network has what it has. ``del net.encoder.layer[0].forward`` takes it back for one module.

    Args:
        net: a module, such as a model of Hugging Face or timm.
        pattern: of names in ``net.named_modules()``: a name, or one that they lie under, or a glob pattern
            (``"encoder.layer.*"``, ``"blocks.*"``), where ``*`` matches dots too. Of modules within each other the
            outer one is taken that can be called: a list of modules stands for its entries, an ``nn.Sequential`` for
            itself.

    Returns:
        The names of the modules.

    Raises:
        ValueError: no module that can be called matches; one whose ``forward`` was replaced before; a network that
            checkpoints activations itself (``gradient_checkpointing_enable()`` of Hugging Face,
            ``set_grad_checkpointing()`` of timm), which saves nothing of a second derivative.

    >>> import torch, hyperopt_ftp as hft
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Tanh()))
    >>> hft.remat_layers(net, "1")
    ['1']
    >>> type(net(torch.ones(3, 2)).grad_fn).__name__
    'RematBackward'
    """
    for name, module in net.named_modules():
        # The first is Hugging Face's flag, the second timm's.
        if getattr(module, "gradient_checkpointing", False) or getattr(module, "grad_checkpointing", False):
            raise ValueError(
                f"{name or 'the network'} checkpoints activations itself, which saves nothing of a second derivative: "
                "switch it off by gradient_checkpointing_disable() (Hugging Face) or set_grad_checkpointing(False) "
                "(timm); remat_layers is in its place"
            )
    matches, found = matcher(pattern), dict[str, nn.Module]()
    for name, module in net.named_modules():  # outer modules come first
        callable_ = type(module).forward is not nn.Module.forward
        if callable_ and matches(name) and not any(name.startswith(f"{outer}.") or outer == "" for outer in found):
            found[name] = module
    if not found:
        raise no_match("remat_layers:", pattern, [name for name, _ in net.named_modules() if name], "module")
    for name, module in found.items():
        if "forward" in vars(module):
            raise ValueError(f"the forward of {name or 'the network'} was replaced before, by remat_layers or others")
    for module in found.values():
        module.forward = MethodType(forward, module)  # of which a copy of the module has its own
    return [*found]


def forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Named as what it replaces: a pickle looks it up by that."""
    return remat(MethodType(type(module).forward, module), *args, **kwargs)
