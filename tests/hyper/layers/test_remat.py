"""hft.remat beside plain autograd: random numbers, autocast, transforms, higher derivatives, strategies, refusals."""

from __future__ import annotations

import random
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call, grad, hessian, jvp, vmap
from torch.utils.checkpoint import checkpoint

import hyperopt_ftp as hft

f64 = torch.float64


def real(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=f64, generator=torch.Generator().manual_seed(seed + sum(shape)))


W, X = real(3, 3), real(4, 3)


def tanh(w: Tensor, x: Tensor) -> Tensor:
    return torch.tanh(x @ w)


def dropped(w: Tensor, x: Tensor) -> Tensor:
    return F.dropout(torch.tanh(x @ w), 0.5)


class Block(nn.Module):
    """Attention and an MLP, with dropout in both."""

    def __init__(self, dropout: float = 0.3) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(4), nn.Linear(4, 12), nn.Linear(4, 4)
        self.mlp = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Dropout(dropout), nn.Linear(6, 4))
        self.dropout = dropout

    def forward(self, x: Tensor, scale: float = 1.0, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unsqueeze(1).chunk(3, -1)
        x = x + scale * self.out(F.scaled_dot_product_attention(q, k, v, mask, self.dropout)[:, 0])
        return x + self.mlp(x)


def network(dtype: torch.dtype = f64, layers: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(Block() for _ in range(layers)), nn.Linear(4, 1)).to(dtype)


def rematted(dtype: torch.dtype = f64) -> nn.Module:
    net = network(dtype)
    hft.remat_layers(net, "[01]")
    return net


def product(call, *given: Tensor, order: int = 2) -> list[Tensor]:
    """Derivatives up to an order: each of the norm of the one before."""
    torch.manual_seed(1)
    at, found = [x.clone().requires_grad_() for x in given], []
    value = call(*at).square().sum()
    for k in range(order):
        grads = torch.autograd.grad(value, at, create_graph=k < order - 1)
        found += grads
        value = sum(g.square().sum() for g in grads)
    return found


def assert_close(found, plain, rtol: float = 1e-12) -> None:
    for x, y in zip(found, plain, strict=True):
        assert (x - y).abs().max() <= rtol * y.abs().max()


def assert_equal_products(plain, call, *given: Tensor, order: int = 2) -> None:
    assert_close(product(call, *given, order=order), product(plain, *given, order=order))


@pytest.mark.parametrize("layer", [tanh, dropped])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_derivatives_of_any_order(layer, order):
    assert_equal_products(
        lambda w, x: layer(w, layer(w, x)),
        lambda w, x: hft.remat(layer, w, hft.remat(layer, w, x)), W, X, order=order,
    )  # fmt: skip


@pytest.mark.parametrize("order", [2, 3])
def test_remats_within_each_other(order):
    def outer(w, x):
        return dropped(w, hft.remat(dropped, w, x)) + hft.remat(lambda x: x.sin(), x)

    assert_equal_products(
        lambda w, x: dropped(w, dropped(w, x)) + x.sin(), lambda w, x: hft.remat(outer, w, x), W, X, order=order
    )


def test_random_numbers_go_on_as_in_a_plain_call():
    torch.manual_seed(0)
    x = X.clone().requires_grad_()
    y = hft.remat(F.dropout, x)
    after = torch.rand(1)
    torch.manual_seed(0)
    assert y.equal(F.dropout(x))
    assert after.equal(torch.rand(1))
    state = torch.get_rng_state()
    torch.autograd.grad(y.sum(), x)
    assert torch.get_rng_state().equal(state)


def test_arguments_and_results_are_trees():
    def layer(pair, scale, *, more):
        a, b = pair["a"], pair["b"]
        return {"sum": a + scale * b, "rest": (more[0], a.argmax(), None, "name", b.detach(), a)}

    a, b = X.clone().requires_grad_(), X.clone()
    found = hft.remat(layer, {"a": a, "b": b}, 2.0, more=[3])
    plain = layer({"a": a, "b": b}, 2.0, more=[3])
    assert found["rest"][0] == 3 and found["rest"][2:4] == (None, "name")
    for x, y in [(found["sum"], plain["sum"]), *zip(found["rest"][4:], plain["rest"][4:], strict=True)]:
        assert x.equal(y) and x.requires_grad == y.requires_grad
    assert found["rest"][1].equal(plain["rest"][1])


def test_a_module_has_its_parameters_and_buffers_for_arguments_wherever_they_come_from():
    block, plain = Block().double(), Block().double()
    plain.load_state_dict(block.state_dict())
    params = [p.detach() for p in block.parameters()]
    names = [name for name, _ in block.named_parameters()]

    def through(call):
        return lambda x, *weights: functional_call(call, dict(zip(names, weights, strict=True)), (x,))

    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = block

        def forward(self, x):
            return hft.remat(self.block, x, scale=2.0, mask=None)

    names_inside = [f"block.{name}" for name in names]

    def inside(x, *weights):
        return functional_call(Around(), dict(zip(names_inside, weights, strict=True)), (x,))

    def outside(x, *weights):
        return functional_call(plain, dict(zip(names, weights, strict=True)), (x, 2.0))

    x = real(2, 3, 4)
    assert_equal_products(outside, inside, x, *[p + 0.1 for p in params])
    # Without functional_call they are its own.
    torch.manual_seed(0)
    loss = hft.remat(block, x).square().sum()
    torch.manual_seed(0)
    assert_close(
        torch.autograd.grad(loss, [*block.parameters()]),
        torch.autograd.grad(plain(x).square().sum(), [*plain.parameters()]),
    )
    torch.manual_seed(0)
    again = hft.remat(block.forward, x).square().sum()  # a method of a module
    assert again.equal(loss)


def test_tied_weights():
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    net[2].weight = net[0].weight
    x, params = real(2, 3), [*net.parameters()]

    def curvature(call):
        grads = torch.autograd.grad(call(x).square().sum(), params, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), params)

    assert_close(curvature(lambda x: hft.remat(net, x)), curvature(net))


def test_nothing_is_kept_where_nothing_is_differentiated():
    calls = []
    layer = lambda x: (calls.append(torch.is_grad_enabled()), x * 2)[1]  # noqa: E731
    assert hft.remat(layer, X).grad_fn is None
    with torch.no_grad():
        hft.remat(layer, X.clone().requires_grad_())
    assert len(calls) == 2 and not calls[1]


def test_a_plain_gradient_computes_a_layer_twice_and_a_product_thrice():
    calls = []
    layer = lambda x: (calls.append(0), x.sin())[1]  # noqa: E731
    x = X.clone().requires_grad_()
    (g,) = torch.autograd.grad(hft.remat(layer, x).sum(), x)
    assert len(calls) == 2 and not g.requires_grad
    calls.clear()
    (g,) = torch.autograd.grad(hft.remat(layer, x).sum(), x, create_graph=True)
    torch.autograd.grad(g.sum(), x)
    assert len(calls) == 3


def test_autocast_inside_and_around():
    weights, x = [p.detach() for p in Block(0.0).float().parameters()], real(2, 3, 4).float()
    block = Block(0.0)
    names = [name for name, _ in block.named_parameters()]

    def call(x, *weights):
        return functional_call(block, dict(zip(names, weights, strict=True)), (x,))

    def product_in(call):
        at = [w.clone().requires_grad_() for w in (x, *weights)]
        with torch.autocast("cpu", torch.bfloat16):
            y = call(*at)
            assert y.dtype == torch.bfloat16 or y.dtype == torch.float32
            grads = torch.autograd.grad(y.float().square().sum(), at, create_graph=True)
        more = torch.autograd.grad(sum(g.float().square().sum() for g in grads), at)  # outside of it
        return [*grads, *more]

    torch.manual_seed(0)
    plain, found = product_in(call), product_in(lambda *given: hft.remat(call, *given))
    assert_close(found, plain, rtol=1e-6)
    other = product(call, x, *weights)
    assert max((a - b).abs().max() for a, b in zip(product(call, x, *weights), plain, strict=True)) > 1e-4  # it counts
    assert len(other) == len(plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(dtype):
    w, x = W.to(dtype), X.to(dtype)
    found = product(lambda w, x: hft.remat(tanh, w, x), w, x)
    for a, b in zip(found, product(tanh, w, x), strict=True):
        assert a.dtype == b.dtype == dtype
        assert (a - b).abs().max() <= 4 * torch.finfo(dtype).eps * b.abs().max()


def test_complex_tensors():
    def layer(w, x):
        return torch.exp(w * x)

    w = torch.complex(W, W.mT).clone().requires_grad_()

    def curvature(call):
        (g,) = torch.autograd.grad(call(w, X[:3]).abs().sum(), w, create_graph=True)
        return torch.autograd.grad(g.abs().square().sum(), w)

    assert_close(curvature(lambda w, x: hft.remat(layer, w, x)), curvature(layer))


def test_transforms_of_torch_func():
    def value(call):
        return lambda w: call(w, X).square().sum()

    plain, found = value(tanh), value(lambda w, x: hft.remat(tanh, w, x))
    for transformed in (
        grad, hessian, lambda f: grad(lambda w: grad(f)(w).square().sum()), lambda f: vmap(f),
        lambda f: lambda w: jvp(grad(f), (w,), (W.mT,))[1],
    ):  # fmt: skip
        at = torch.stack([W, W.mT]) if transformed(plain) is not None and transformed(found) is None else W
        assert_close([transformed(found)(at)], [transformed(plain)(at)])
    # Captured tensors are right there.
    c = X.clone()
    assert_close([grad(lambda c: hft.remat(lambda w: tanh(w, c), W).sum())(c)], [grad(lambda c: tanh(W, c).sum())(c)])


def test_forward_mode_of_autograd_calls_the_layer_as_it_is():
    with torch.autograd.forward_ad.dual_level():
        w = torch.autograd.forward_ad.make_dual(W.clone().requires_grad_(), W.mT)
        found = torch.autograd.forward_ad.unpack_dual(hft.remat(tanh, w, X)).tangent
    assert_close([found], [jvp(lambda w: tanh(w, X), (W,), (W.mT,))[1]])


@pytest.mark.parametrize("create_graph", [False, True])
def test_several_cotangents_at_once(create_graph):
    """By vmap in a graph from outside: of the first gradient, and of the second."""

    def rows(call):
        torch.manual_seed(0)
        w = W.clone().requires_grad_()
        y = call(w, X)
        vs = real(2, 4, 3)
        (jacobian,) = torch.autograd.grad(y, w, vs, is_grads_batched=True, retain_graph=True, create_graph=create_graph)
        (g,) = torch.autograd.grad(y.square().sum(), w, create_graph=True)
        (products,) = torch.autograd.grad(
            g, w, real(2, 3, 3), is_grads_batched=True, retain_graph=True, create_graph=create_graph
        )
        found = [jacobian, products]
        if create_graph:
            found += torch.autograd.grad(jacobian.square().sum() + products.square().sum(), w)
        return found

    assert_close(rows(lambda w, x: hft.remat(dropped, w, hft.remat(tanh, w, x))), rows(lambda w, x: dropped(w, tanh(w, x))))


def test_a_layer_may_be_gone_back_through_again():
    w = W.clone().requires_grad_()
    y = hft.remat(tanh, w, X).sum()
    first = torch.autograd.grad(y, w, retain_graph=True)
    assert_close(torch.autograd.grad(y, w), first, rtol=0.0)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y, w)


def test_a_compiled_function_calls_it_as_it_is():
    w = W.clone().requires_grad_()
    found = torch.compile(lambda w: hft.remat(tanh, w, X).sum() * 2, backend="eager")(w)
    assert_close(torch.autograd.grad(found, w), torch.autograd.grad(tanh(w, X).sum() * 2, w))


# In training.

PARAMS = {name: p.detach() for name, p in network().named_parameters()}
DATA = [real(2, 3, 4, seed=k) for k in range(4)]
EVALUATED = network().eval()


def hypergradient(net: nn.Module, strategy=None, over=("lr", "loss"), params=PARAMS, optimizer=None, narrow=False):
    dtype = params["2.weight"].dtype
    data = [x.to(dtype) for x in DATA]

    def loss(p, x, own):
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            out = functional_call(net, p, (x,))
        return (torch.sigmoid(own["weight"]) * out.to(dtype).square()).mean()

    torch.manual_seed(2)
    optimizer = optimizer or hft.adam(eps_root=1e-8)
    value, grads, _ = hft.hypergradient(
        optimizer, loss, lambda p: functional_call(EVALUATED.to(dtype), p, (data[0],)).square().mean(), params, data,
        over=list(over), hparams={"lr": 0.01, "loss": {"weight": torch.tensor(0.3, dtype=dtype)}}, strategy=strategy,
    )  # fmt: skip
    return [value, *hft.tree.leaves(grads)]


STRATEGIES = [
    hft.Unroll(checkpoint=False), hft.Unroll(), hft.Unroll(checkpoint=1), hft.Unroll(checkpoint="sqrt"),
    hft.Unroll(checkpoint="log"), hft.Unroll(checkpoint=2, offload=True), hft.Unroll(memory=10**6),
    hft.Unroll(truncate=2), hft.Unroll(first_order=True), hft.Forward(), hft.Forward(chunk=1),
    hft.ZeroOrder(2, sigma=0.1),
]  # fmt: skip


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
@pytest.mark.parametrize("narrow", [False, True])
def test_a_hypergradient_with_dropout_is_that_without_remat(strategy, narrow):
    if strategy.__class__ is hft.ZeroOrder:
        strategy = hft.ZeroOrder(2, sigma=0.1, generator=torch.Generator().manual_seed(0))
    over = ["lr"] if getattr(strategy, "first_order", False) else ["lr", "loss"]
    plain = hypergradient(network(), strategy, over, narrow=narrow)
    if strategy.__class__ is hft.ZeroOrder:
        strategy.generator.manual_seed(0)
    found = hypergradient(rematted(), strategy, over, narrow=narrow)
    # Forward adds up what the loss's hparam does in a tangent for each gradient, as large as the one of lr.
    assert_close(found, plain, rtol=1e-12 if type(strategy) is not hft.Forward else 1e-11)
