"""hft.remat beside plain autograd: random numbers, autocast, transforms, higher derivatives, strategies."""

from __future__ import annotations

import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jvp, vmap

import hyperopt_ftp as hft

from .problems import W, X, assert_close, f64, real, tanh


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


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Block(), Block(), nn.Linear(4, 1)).double()


def rematted() -> nn.Module:
    net = network()
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


def assert_equal_products(plain, call, *given: Tensor, order: int = 2) -> None:
    assert_close(product(call, *given, order=order), product(plain, *given, order=order))


@pytest.mark.parametrize("order", [1, 4])
def test_derivatives_of_any_order(order):
    assert_equal_products(
        lambda w, x: dropped(w, dropped(w, x)),
        lambda w, x: hft.remat(dropped, w, hft.remat(dropped, w, x)), W, X, order=order,
    )  # fmt: skip


def test_remats_within_each_other():
    def outer(w, x):
        return dropped(w, hft.remat(dropped, w, x)) + hft.remat(lambda x: x.sin(), x)

    assert_equal_products(
        lambda w, x: dropped(w, dropped(w, x)) + x.sin(), lambda w, x: hft.remat(outer, w, x), W, X, order=3
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
    assert found["rest"][0] == 3
    assert found["rest"][2:4] == (None, "name")
    for x, y in [(found["sum"], plain["sum"]), *zip(found["rest"][4:], plain["rest"][4:], strict=True)]:
        assert x.equal(y)
        assert x.requires_grad == y.requires_grad
    assert found["rest"][1].equal(plain["rest"][1])
    # Without any that has a derivative, which are not kept.
    found = hft.remat(lambda a: (2 * a.detach(), a.argmax()), a)
    assert found[0].equal(2 * a)
    constant, y = hft.remat(lambda a: (2 * a.detach(), a.sin()), a)
    kept = weakref.ref(constant)
    del constant
    assert y.requires_grad
    assert kept() is None


def test_a_module_has_its_parameters_and_buffers_for_arguments_wherever_they_come_from():
    block, plain = Block().double(), Block().double()
    plain.load_state_dict(block.state_dict())
    names = [name for name, _ in block.named_parameters()]

    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = block

        def forward(self, x, scale):
            return hft.remat(self.block, x, scale=scale, mask=None)

    def through(call, prefix=""):
        places = [prefix + name for name in names]
        return lambda x, *weights: functional_call(call, dict(zip(places, weights, strict=True)), (x, 2.0))

    x = real(2, 3, 4)
    others = [p.detach() + 0.1 for p in block.parameters()]
    assert_equal_products(through(plain), through(Around(), "block."), x, *others)
    # Without functional_call they are its own.
    torch.manual_seed(0)
    loss = hft.remat(block, x).square().sum()
    torch.manual_seed(0)
    assert_close(
        torch.autograd.grad(loss, [*block.parameters()]),
        torch.autograd.grad(plain(x).square().sum(), [*plain.parameters()]),
    )
    torch.manual_seed(0)
    assert hft.remat(block.forward, x).square().sum().equal(loss)  # a method of a module


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
    assert calls == [True, False]


@pytest.mark.parametrize("order", [1, 2, 3])
def test_graphs_keep_nothing_of_a_layer(order):
    made = []

    def layer(x):
        made.append(weakref.ref(y := x.sin()))
        return y.cos()

    def alive(call):
        made.clear()
        x = X.clone().requires_grad_()
        value = call(x).sum()
        for _ in range(order - 1):
            (g,) = torch.autograd.grad(value, x, create_graph=True)
            value = g.square().sum()
        return sum(y() is not None for y in made)

    assert alive(lambda x: hft.remat(layer, x)) == 0
    assert alive(layer) == 1


def test_autocast_is_that_of_the_first_run_and_of_the_first_gradient():
    dtypes, w = [], W.float()

    class Seen(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            dtypes.append(x.dtype)
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            dtypes.append((g.float() @ g.float().mT).dtype)
            return g

    def layer(w, x):
        return Seen.apply(torch.tanh(x @ w))

    def derivatives(call):
        at = w.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = call(at, X.float())
            (g,) = torch.autograd.grad(y.float().sum(), at, create_graph=True)
        return g, *torch.autograd.grad(g.square().sum(), at)  # outside of it

    plain = derivatives(lambda w, x: torch.tanh(x @ w))
    found = derivatives(lambda w, x: hft.remat(layer, w, x))
    assert dtypes == [torch.bfloat16] * 5  # forward; again, and back; both again
    for x, y in zip(found, plain, strict=True):  # sums in 16 bits have another order
        assert (x - y).abs().max() <= 4 * torch.finfo(torch.bfloat16).eps * y.abs().max()


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


def test_attention_goes_by_its_formula_where_no_training_says_so():
    """The fused kernels have no second derivative."""
    q, k, v = given = [real(2, 2, 3, 4, seed=i) for i in range(3)]
    call = F.scaled_dot_product_attention
    with pytest.raises(RuntimeError, match="not implemented"):
        product(call, *given)
    scores = lambda q, k, v: (q @ k.mT / 2).softmax(-1) @ v  # noqa: E731
    assert_close(product(lambda *given: hft.remat(call, *given), q, k, v), product(scores, q, k, v))


@pytest.mark.parametrize("create_graph", [False, True])
def test_several_cotangents_at_once(create_graph):
    """By vmap in a graph from outside: of the first gradient, and of the second."""

    def along(y, w, vs):
        return vmap(lambda v: torch.autograd.grad(y, w, v, retain_graph=True, create_graph=create_graph)[0])(vs)

    def rows(call):
        torch.manual_seed(0)
        w = W.clone().requires_grad_()
        y = call(w, X)
        jacobian = along(y, w, real(2, 4, 3))
        (g,) = torch.autograd.grad(y.square().sum(), w, create_graph=True)
        products = along(g, w, real(2, 3, 3))
        found = [jacobian, products]
        if create_graph:
            found += torch.autograd.grad(jacobian.square().sum() + products.square().sum(), w)
        return found

    found = rows(lambda w, x: hft.remat(dropped, w, hft.remat(tanh, w, x)))
    assert_close(found, rows(lambda w, x: dropped(w, tanh(w, x))))


def test_the_old_vmap_is_refused():
    w = W.clone().requires_grad_()
    (g,) = torch.autograd.grad(hft.remat(tanh, w, X).sum(), w, create_graph=True)
    for y, vs in [(hft.remat(tanh, w, X), real(2, 4, 3)), (g, real(2, 3, 3))]:
        with pytest.raises(RuntimeError, match="is_grads_batched .* take torch.func.vmap"):
            torch.autograd.grad(y, w, vs, is_grads_batched=True)


def test_a_layer_may_be_gone_back_through_again():
    w = W.clone().requires_grad_()
    y = hft.remat(tanh, w, X).sum()
    first = torch.autograd.grad(y, w, retain_graph=True)
    assert_close(torch.autograd.grad(y, w), first, rtol=0.0)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y, w)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of dynamo itself, for what is no leaf
def test_a_compiled_function_calls_it_as_it_is():
    w = W.clone().requires_grad_()
    found = torch.compile(lambda w: hft.remat(tanh, w, X).sum() * 2, backend="eager")(w)
    assert_close(torch.autograd.grad(found, w), torch.autograd.grad(tanh(w, X).sum() * 2, w))


# In training.

PARAMS = {name: p.detach() for name, p in network().named_parameters()}
DATA = [real(2, 3, 4, seed=k) for k in range(4)]
EVALUATED = network().eval()


def hypergradient(net: nn.Module, strategy, over):
    def loss(p, x, own):
        with torch.autocast("cpu", torch.bfloat16):
            out = functional_call(net, p, (x,))
        return (torch.sigmoid(own["weight"]) * out.double().square()).mean()

    torch.manual_seed(2)
    value, grads, _ = hft.hypergradient(
        hft.adam(eps_root=1e-8), loss, lambda p: functional_call(EVALUATED, p, (DATA[0],)).square().mean(), PARAMS,
        DATA, over=over, hparams={"lr": 0.01, "loss": {"weight": torch.tensor(0.3, dtype=f64)}}, strategy=strategy,
    )  # fmt: skip
    return [value, *hft.tree.leaves(grads)]


#: With what is tuned.
STRATEGIES = [
    (hft.Unroll(checkpoint=False), ["lr", "loss"]), (hft.Unroll(checkpoint=1), ["lr", "loss"]),
    (hft.Unroll(memory=10**6), ["lr", "loss"]), (hft.Unroll(first_order=True), ["lr"]), (hft.Forward(), ["lr", "loss"]),
    (hft.ZeroOrder(2, sigma=0.1), ["lr", "loss"]),
]  # fmt: skip


@pytest.mark.parametrize(("strategy", "over"), STRATEGIES, ids=str)
def test_a_hypergradient_with_dropout_and_autocast_is_that_without_remat(strategy, over):
    plain = hypergradient(network(), strategy, over)
    found = hypergradient(rematted(), strategy, over)
    # Forward adds up what the loss's hparam does in a tangent for each gradient, as large as the one of lr.
    assert_close(found, plain, rtol=1e-12 if type(strategy) is not hft.Forward else 1e-11)


@pytest.mark.parametrize("solver", ["neumann", "cg"])
def test_implicit(solver):
    """Which goes back through a graph many times. Without dropout, in a strongly convex problem."""
    how = hft.Implicit(solver, iterations=5, tolerance=1.0)

    def found(call):
        value, grads, _ = hft.hypergradient(
            hft.sgd(lr=0.1), lambda w, x, own: (call(w, x) - 1).square().mean() + own * w.square().sum(),
            lambda w: (w - X[:3]).square().mean(), W, [X] * 60, over=["loss"],
            hparams={"loss": torch.tensor(0.5, dtype=f64)}, strategy=how,
        )  # fmt: skip
        return [value, grads["loss"]]

    assert_close(found(lambda w, x: hft.remat(tanh, w, x)), found(tanh))


def test_a_derivative_of_a_hypergradient():
    def second(call):
        lr = torch.tensor(0.1, dtype=f64, requires_grad=True)
        loss, how = lambda w, x: call(w, x).square().mean(), hft.Unroll(checkpoint=1)
        end = hft.train(hft.sgd(), loss, W, [X] * 3, hparams={"lr": lr}, strategy=how).params
        (first,) = torch.autograd.grad(end.square().sum(), lr, create_graph=True)
        return [first, *torch.autograd.grad(first, lr)]

    assert_close(second(lambda w, x: hft.remat(tanh, w, x)), second(tanh))


def test_an_estimate_sees_what_a_remat_saves():
    def loss(call):
        def of(ws, x):
            for w in ws:
                x = call(w, x)
            return x.square().mean()

        return of

    def layer(w, x):
        return torch.tanh(torch.tanh(torch.tanh(x @ w) @ w) @ w)

    ws = [torch.empty(64, 64, device="meta") for _ in range(6)]
    data, how = [torch.empty(4096, 64, device="meta")] * 2, hft.Unroll(checkpoint=1)
    plain, found = (
        hft.estimate(hft.sgd(), loss(call), ws, data, over="lr", strategy=how)
        for call in (layer, lambda w, x: hft.remat(layer, w, x))
    )
    assert found[1:] == plain[1:]
    assert found.memory < 0.5 * plain.memory
