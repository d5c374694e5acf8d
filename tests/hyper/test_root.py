"""root and fixed_point have the derivatives of the equation's solution, of any order, or say why not."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, vmap
from torch.nn.functional import scaled_dot_product_attention

import hyperopt_ftp as hft

F64 = torch.float64
ZERO, ONE = torch.zeros(3, dtype=F64), torch.ones(3, dtype=F64)


def drawn(*shape, seed=0, scale=0.3):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64) * scale


def layer(x, theta):
    """Of a DEQ: attention within each example, a projection, and a mask that is drawn once; it contracts."""
    mixed = scaled_dot_product_attention(x["h"], x["h"] @ theta["w"], x["h"])
    h = torch.tanh(theta["mask"] * (mixed @ theta["w"]) / 2 + theta["b"] + x["s"])
    return {"h": h, "s": x["h"].mean((0, 1, 2)) * 0.3}


START = {"h": torch.zeros(1, 1, 2, 3, dtype=F64), "s": torch.zeros(3, dtype=F64)}
THETA = {"w": drawn(3, 3), "b": drawn(1, 2, 3, seed=1), "mask": (drawn(1, 2, 3, seed=4) > 0).long()}


def objective(solve, w, b):
    x = solve({**THETA, "w": w, "b": b})
    return (x["h"] ** 3).sum() + x["s"].square().sum()


def by_root(theta):
    return hft.root(lambda x, t: {k: (x[k] - v) * 2 for k, v in layer(x, t).items()}, START, theta)


def by_fixed_point(theta):
    return hft.fixed_point(layer, START, theta)


def by_series(theta):
    return hft.fixed_point(layer, START, theta, strategy=hft.Implicit("neumann", iterations=60))


def by_hand(theta):
    x = START
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        for _ in range(60):
            x = layer(x, theta)
    return x


SOLVED = pytest.mark.parametrize("solve", [by_root, by_fixed_point, by_series])


def close(found, wanted, rel=1e-8):  # the series stops at 4e-11 of each right-hand side
    torch.testing.assert_close(found, wanted, rtol=rel, atol=rel * max(float(x.abs().max()) for x in wanted))


@SOLVED
def test_values_and_derivatives_of_two_orders_are_those_of_many_steps_by_hand(solve):
    def orders(solve):
        w, b = (THETA[name].clone().requires_grad_() for name in "wb")
        value = objective(solve, w, b)
        found = [value]
        for _ in range(2):
            grads = torch.autograd.grad(value, (w, b), create_graph=True)
            found += grads
            value = sum(g.square().sum() for g in grads)
        return [x.detach() for x in found]

    close(orders(solve), orders(by_hand))


@pytest.mark.parametrize("solve", [by_root, by_series])
@pytest.mark.parametrize(
    "transform",
    [grad, jacfwd, hessian, lambda f: jacrev(jacfwd(f)), lambda f: lambda b: vmap(hessian(f))(torch.stack([b, -b]))],
    ids=["grad", "jacfwd", "hessian", "jacrev of jacfwd", "vmap of hessian"],
)
@pytest.mark.filterwarnings("ignore:`torch.jit.script")
def test_under_transforms(solve, transform):
    def of(solve):
        def f(scale):
            return objective(solve, THETA["w"] * scale[0], THETA["b"] * scale[1])

        return transform(f)(torch.tensor([1.0, 0.7], dtype=F64))

    close([of(solve)], [of(by_hand)])


def test_gradcheck_of_a_nonlinear_equation():
    def solution(a, b):
        return hft.root(lambda x, t: x**3 + t[0] * x - t[1], ONE, (a, b))

    given = tuple(drawn(3, seed=s).abs().add(0.5).requires_grad_() for s in (1, 2))
    assert torch.autograd.gradcheck(solution, given)
    assert torch.autograd.gradgradcheck(solution, given)


@pytest.mark.filterwarnings("ignore:`torch.jit.script")
def test_two_forward_transforms_are_refused_where_torch_loses_a_derivative():
    def f(a):
        return hft.root(lambda x, t: x**2 - t, ONE, a).sum()

    for what in (jacfwd(jacfwd(f)), lambda a: jacfwd(jacfwd(trained))(a[0])):
        with pytest.raises(RuntimeError, match="under two forward transforms .* take a reverse one"):
            what(ONE)


def trained(centre):
    opt, strategy = hft.sgd(lr=0.1), hft.Implicit("dense")
    return hft.train(
        opt, lambda p, x, h: ((p - h**2) ** 2).sum(), ZERO, [ONE] * 100, hparams={"loss": centre}, strategy=strategy
    ).params.sum()


def test_any_solver_will_do_and_is_not_differentiated():
    x, y = drawn(20, 3, seed=1, scale=1.0), drawn(20, seed=2, scale=1.0)

    def loss(w, l2):
        return (x @ w - y).square().sum() / 2 + l2 * w.square().sum() / 2

    def closed_form(l2):
        return torch.linalg.solve(x.T @ x + l2 * torch.eye(3, dtype=F64), x.T @ y)

    def scipys(w, l2):
        assert (w.requires_grad, l2.requires_grad) == (False, False)
        return torch.from_numpy(closed_form(l2).numpy())

    def lbfgs(w, l2):
        w = w.clone().requires_grad_()
        to_rounding = {"max_iter": 50, "tolerance_grad": 0.0, "tolerance_change": 0.0}
        opt = torch.optim.LBFGS([w], **to_rounding, line_search_fn="strong_wolfe")
        opt.step(lambda: (opt.zero_grad(), value := loss(w, l2), value.backward())[1])
        return w

    l2 = torch.tensor(0.5, dtype=F64, requires_grad=True)
    wanted = jacrev(closed_form)(l2.detach()), jacrev(jacrev(closed_form))(l2.detach())
    for solve in (None, scipys, lbfgs):
        for strategy in (None, hft.Implicit("cg", iterations=10)):
            w = hft.root(grad(loss), ZERO, l2, solve=solve, strategy=strategy)
            (slope,) = torch.autograd.grad(w.sum(), l2, create_graph=True)
            (bend,) = torch.autograd.grad(slope, l2)
            close([slope.detach(), bend], [x.sum() for x in wanted])


def test_a_large_deq_by_products_alone():
    net = torch.nn.Sequential(torch.nn.Linear(40, 40), torch.nn.Tanh()).double()
    torch.nn.init.orthogonal_(net[0].weight, gain=0.5, generator=torch.Generator().manual_seed(0))
    inputs = drawn(30, 40, seed=3)

    def f(z, theta):
        return functional_call(net, theta, (z,)) + inputs

    theta, z = dict(net.named_parameters()), torch.zeros(30, 40, dtype=F64)
    hft.fixed_point(f, z, theta).square().sum().backward()
    for _ in range(60):
        z = f(z, theta)
    close([p.grad for p in theta.values()], [*torch.autograd.grad(z.square().sum(), list(theta.values()))])


def test_no_derivative_of_the_start_and_jacobian_free():
    start, a = ZERO.clone().requires_grad_(), ONE.clone().requires_grad_()
    x = hft.fixed_point(lambda x, t: x / 2 + t, start, a, strategy=hft.Implicit("identity"))
    assert [g.tolist() for g in torch.autograd.grad(x.sum(), [start, a])] == [[0.0] * 3, [1.0] * 3]
    batched = vmap(lambda x0: hft.root(lambda x, t: x.sin() * t, x0, ONE))(torch.stack([ZERO + 0.1, ZERO + 3]))
    torch.testing.assert_close(batched, torch.stack([ZERO, ZERO + torch.pi]))


def minus(x, t):
    return x - t


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda t: hft.root(lambda x, t: (x - t).sum(), ZERO, t), ValueError, r"like x0, \(3,\) .*, got \(\)"),
        (lambda t: hft.root(lambda x, t: x["a"], {"a": ZERO}, t), ValueError, "F must be like x0, {'a': '.3,. t"),
        (lambda t: hft.root(lambda x, t: x.float(), ZERO, t), ValueError, r"torch.float64, got .* torch.float32"),
        (lambda t: hft.fixed_point(lambda x, t: x[:2], ZERO, t), ValueError, "fixed_point: f must be like x0"),
        (lambda t: hft.root(minus, ZERO, t, solve=lambda x, t: x[:2]), ValueError, "what solve returned must be"),
        (lambda t: hft.root(minus, ZERO.bfloat16(), t), TypeError, "x0 must hold float32 or float64 tensors, got"),
        (lambda t: hft.root(minus, ZERO.long(), t), TypeError, "x0 must hold float32 or float64 tensors, got"),
        (lambda t: hft.root(minus, [], t), TypeError, "x0 must hold float32 or float64 tensors, got"),
        (lambda t: hft.root(lambda x: x, ZERO, t), TypeError, "takes 1 positional argument"),
        (lambda t: hft.root(minus, torch.zeros(1001), t, solve=minus), ValueError, "1001 entries.* give solve="),
        (lambda t: hft.root(minus, torch.zeros(1001), t), ValueError, "1001 entries.* give solve= and strategy=hft.I"),
        (lambda t: hft.root(minus, ZERO, t, strategy=hft.Unroll()), TypeError, r"must be hft.Implicit\(...\), with"),
        (lambda t: hft.root(minus, ZERO, t, strategy=hft.Implicit(batches=2)), TypeError, "with batches=1, got"),
        (lambda t: hft.root(lambda x, _: x - t, ZERO, ONE), ValueError, "uses a tensor of shape .* Pass it in theta"),
        (lambda t: hft.root(lambda x, t: x - t.sum().item(), ZERO, t), RuntimeError, "takes the number of x or theta"),
        (lambda t: grad(lambda a: hft.root(lambda x, t: x - float(t), ZERO, a).sum())(ONE[0]), RuntimeError, "number"),
        (lambda t: hft.root(lambda x, t: x * x.norm().item() - t, ONE, t), RuntimeError, "the number of x or theta"),
        (lambda t: hft.root(minus, ZERO, t, solve="newton"), TypeError, "solve must be a function"),
        (lambda t: hft.root(minus, ZERO, t, solve=lambda x, t: t / 0 * 0), ArithmeticError, "off by nan"),
        (lambda t: hft.root(lambda x, t: x**2 + t, ONE, t), ArithmeticError, "F is not 0"),
        (lambda t: hft.root(lambda x, t: 0 * x + x.sum() - t, ONE, t), ArithmeticError, "nan: dF/dx is singular"),
        (lambda t: hft.root(minus, ZERO, t, solve=lambda x, t: x), ArithmeticError, "F is not 0 where the solver stop"),
        (lambda t: hft.fixed_point(lambda x, t: t - 2 * x, ZERO, t), ArithmeticError, "fixed_point: F is not 0"),
        (lambda t: vmap(lambda a: hft.root(lambda x, _: x - t, ZERO, a))(ONE), ValueError, "Pass it in theta"),
        (lambda t: grad(lambda a: hft.root(lambda x, _: x - a, ZERO, ONE).sum())(ONE), ValueError, "Pass it in theta"),
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_an_error(call, error, words):
    with pytest.raises(error, match=words):
        call(ONE.clone().requires_grad_())


def test_a_solver_that_almost_arrives_warns_and_values_alone_may_capture():
    def rough(x, t):
        return t * (1 + 1e-4)

    with pytest.warns(UserWarning, match="of x is off by 0.0001 of its size, .* by strategy=hft.Implicit"):
        hft.root(minus, ZERO, ONE, solve=rough)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hft.root(minus, ZERO, ONE, solve=rough, strategy=hft.Implicit("dense", tolerance=1e-3))
    x = hft.root(lambda x, t: x - t["a"] * t["n"].item(), ZERO, {"a": ONE.clone().requires_grad_(), "n": ONE[0] * 3})
    assert x.requires_grad  # a number of a constant
    own = ONE.clone().requires_grad_()
    with torch.no_grad():
        torch.testing.assert_close(hft.root(lambda x, t: x - t * own, ZERO, ONE), ONE)


def test_modes_without_precision_or_gradients_are_refused():
    for mode in (torch.inference_mode(), torch.autocast("cpu")):
        with mode, pytest.raises(RuntimeError, match="leave torch.inference_mode.* and autocast"):
            hft.root(minus, ZERO, ONE)


def test_entries_of_different_size_are_all_found():
    """A pressure in pascals beside a share: a step that is small for one is not for the other."""
    k = torch.tensor(2.0, dtype=F64, requires_grad=True)
    scales = torch.tensor([1e12, 0.0], dtype=F64)

    def balance(x, k):
        return torch.stack([x[0] / 1e12 - 1, k * (1 - x[1]) ** 2 - x[1]])

    x = hft.root(balance, scales, k)
    torch.testing.assert_close(x[1].detach(), torch.tensor(0.5, dtype=F64), rtol=1e-9, atol=0)
    torch.testing.assert_close(torch.autograd.grad(x[1], k)[0], torch.tensor(1 / 12, dtype=F64), rtol=1e-8, atol=0)
    t = torch.tensor(0.9, dtype=F64, requires_grad=True)
    x = hft.fixed_point(lambda x, t: torch.stack([x[0] * 0 + 1e5, t * x[1] + 1]), 1e-7 * scales, t)
    torch.testing.assert_close(x[1].detach(), torch.tensor(10.0, dtype=F64), rtol=1e-9, atol=0)


def test_a_solver_may_write_into_its_start():
    x0, t = torch.ones(2, dtype=F64), torch.tensor(4.0, dtype=F64)
    hft.root(lambda x, t: x - t, x0, t, solve=lambda x, t: x.copy_(t.expand(2)))
    assert torch.equal(x0, torch.ones(2, dtype=F64))


@pytest.mark.parametrize("off", [1e-3, 0.5], ids=["warned of", "refused"])
@pytest.mark.parametrize("many", [1, 600], ids=["by Newton's step", "of a large x"])
def test_what_a_solver_left_undone_in_a_small_entry_is_seen(off, many):
    """1e6 beside 1, each with an equation in units of its own."""
    t = torch.tensor([1e6, 1.0], dtype=F64).repeat(many)
    wrong = t * torch.tensor([1.0, 1 + off], dtype=F64).repeat(many)
    given = {"solve": lambda x, t: wrong, "strategy": hft.Implicit("cg")}
    expected = pytest.warns(UserWarning, match="an entry of x is off") if off < 1e-2 else pytest.raises(ArithmeticError)
    with expected:
        hft.root(lambda x, t: x / t - 1, 0 * t, t, **given)
    hft.root(lambda x, t: x / t - 1, 0 * t, t, **{**given, "solve": lambda x, t: t * (1 + 1e-9)})


def test_values_at_a_solution_where_the_derivative_is_singular():
    with torch.no_grad():
        assert hft.root(lambda x, t: (x - t) ** 2, ZERO, ONE, solve=lambda x, t: t).equal(ONE)


@pytest.mark.parametrize("solve", [hft.root, hft.fixed_point])
def test_it_stops_where_it_has_arrived(solve):
    calls = []

    def linear(x, t):
        calls.append(x)
        return x - t if solve is hft.root else t + 0 * x

    assert torch.equal(solve(linear, ZERO, ONE), ONE)
    assert len(calls) < 10
