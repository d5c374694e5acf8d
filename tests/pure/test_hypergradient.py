"""Every strategy that is exact, for every optimizer and hyperparameter, against central differences; and each other."""

from __future__ import annotations

import warnings

import pytest
import torch

import hyperopt_ftp as hft
from hyperopt_ftp import tree
from hyperopt_ftp.hyper import Strategy, TrainInputs

from ..support.cases import CASES, Case
from ..support.problems import batches, central_differences, entries, loss, start, train

SMOOTH = [case for case in CASES if case.smooth]
every_case = pytest.mark.parametrize("case", SMOOTH, ids=str)
EXACT = {
    "unroll": hft.Unroll(),
    "unroll-every-2nd": hft.Unroll(checkpoint=2),
    "unroll-sqrt-offload": hft.Unroll(checkpoint="sqrt", offload=True),
    "unroll-every-step": hft.Unroll(checkpoint=1),
    "forward": hft.Forward(),
}


VALIDATION = batches(1)[0] + 0.3


def outer(params):
    return loss(params, VALIDATION)


def compute(opt, strategy, steps=5, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # some hypergradients are 0 by the rule
        return hft.hypergradient(opt, loss, outer, start(), batches(steps), strategy=strategy, **options)


@every_case
def test_exact_strategies_equal_central_differences_and_each_other(case: Case):
    opt = case.build()
    results = {name: compute(opt, strategy) for name, strategy in EXACT.items()}
    trained = train(opt, None, start(), batches(5))
    want = torch.stack(central_differences(lambda h: outer(train(opt, h, start(), batches(5))[0]), opt.hparams))
    scale = max(want.abs().max().item(), 1.0)
    for name, (value, grads, end) in results.items():
        got = entries(grads)
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8 * scale, msg=lambda m, name=name: f"{name}: {m}")
        # Against each other only rounding remains.
        torch.testing.assert_close(got, entries(results["unroll"][1]), rtol=1e-10, atol=1e-13 * scale)
        assert value.item() == pytest.approx(outer(trained[0]).item(), rel=1e-12)
        for a, b in zip(tree.leaves(end), tree.leaves(trained), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
            assert not a.requires_grad


@pytest.mark.parametrize("name", EXACT)
def test_it_nests_in_transforms(name):
    """The outer derivative of a hypergradient: grad, and vmap over values."""
    opt, w, data = hft.adamw(lr=0.1, eps=1e-2), start(), batches(3)

    def slope(lr):
        _, grads, _ = hft.hypergradient(
            opt, loss, outer, w, data, over="lr", hparams=opt.hparams | {"lr": lr}, strategy=EXACT[name]
        )
        return grads["lr"]

    lr = torch.tensor(0.1, dtype=torch.float64)
    second = torch.func.grad(slope)(lr)
    assert second.item() == pytest.approx(central_differences(slope, lr)[0].item(), rel=1e-6)
    lrs = torch.tensor([0.02, 0.1, 0.3], dtype=torch.float64)
    torch.testing.assert_close(
        torch.func.vmap(slope)(lrs), torch.stack([slope(x) for x in lrs]), rtol=1e-12, atol=1e-14
    )


def test_unroll_over_one_step_is_one_step():
    """By sgd(lr=1), a tuned value moves by the hypergradient of the step before."""
    params, (x, y) = start(), batches(2)
    base = hft.rmsprop(lr=0.05, eps=1e-2)
    opt = hft.hyper(base, by=hft.sgd(lr=1e-3), over=("lr", "alpha"))
    state = opt.init(params)
    first, state = opt.update(torch.func.grad(loss)(params, x), state, params)
    _, state = opt.update(torch.func.grad(loss)(first, y), state, first)
    _, grads, _ = hft.hypergradient(base, loss, lambda p: loss(p, y), params, [x], over=("lr", "alpha"))
    for name, h in grads.items():
        assert state.tuned[name].item() == pytest.approx((base.hparams[name] - 1e-3 * h).item(), rel=1e-13)


def test_truncation_differentiates_the_last_steps():
    opt, data = hft.sgd(lr=0.1, momentum=0.9), batches(6)
    _, grads, _ = hft.hypergradient(opt, loss, outer, start(), data, over="lr", strategy=hft.Unroll(truncate=2))
    params, state = train(opt, None, start(), data[:4])
    _, last, _ = hft.hypergradient(opt, loss, outer, params, data[4:], over="lr", state=state)
    assert grads["lr"].item() == pytest.approx(last["lr"].item(), rel=1e-13)
    full = hft.hypergradient(opt, loss, outer, start(), data, over="lr")[1]
    assert abs(full["lr"] - grads["lr"]) > 1e-3


@pytest.mark.parametrize("name", EXACT)
def test_layers_paths_and_the_losss_own_hyperparameters(name):
    def own_loss(params, x, h):
        return loss(params, x) + h["l2"] * (params["w"] ** 2).sum() + (h["shift"] * params["b"]).sum()

    f64 = torch.float64
    opt = hft.adamw(lr=0.1, eps=1e-2)
    hparams = opt.hparams | {
        "lr": {"w": torch.tensor(0.1, dtype=f64), "b": torch.tensor(0.03, dtype=f64)},
        "loss": {"l2": torch.tensor(0.2, dtype=f64), "shift": torch.linspace(0, 1, 4, dtype=f64)},
    }
    over = ("lr", "betas.1", "loss")

    def run(values):
        full = hparams | {"lr": values["lr"], "loss": values["loss"], "betas": (hparams["betas"][0], values["betas.1"])}
        params, state = start(), opt.init(start())
        for x in batches(3):
            grads = torch.func.grad(own_loss)(params, x, full["loss"])
            params, state = opt.update(grads, state, params, {k: v for k, v in full.items() if k != "loss"})
        return outer(params)

    _, grads, _ = hft.hypergradient(
        opt, own_loss, outer, start(), batches(3), over=over, hparams=hparams, strategy=EXACT[name]
    )
    values = {"lr": hparams["lr"], "betas.1": hparams["betas"][1], "loss": hparams["loss"]}
    want = torch.func.grad(run)(values)
    assert grads.keys() == want.keys()
    for got, right in zip(tree.leaves(grads), tree.leaves(want), strict=True):
        torch.testing.assert_close(got, right, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", ["unroll", "unroll-every-2nd", "unroll-every-step"])
def test_random_losses_are_the_same_where_a_step_is_computed_again(name):
    def noisy(params, x):
        return loss({k: torch.nn.functional.dropout(v, 0.5) for k, v in params.items()}, x)

    opt = hft.sgd(lr=0.2, momentum=0.9)

    def grads(lr):
        torch.manual_seed(5)
        h = opt.hparams | {"lr": lr}
        return hft.hypergradient(opt, noisy, outer, start(), batches(5), over="lr", hparams=h, strategy=EXACT[name])

    def value(lr):
        return grads(lr)[0]

    lr = torch.tensor(0.2, dtype=torch.float64)
    assert grads(lr)[1]["lr"].item() == pytest.approx(central_differences(value, lr)[0].item(), rel=1e-6)
    after = torch.rand(1)
    torch.manual_seed(5)
    for _ in range(5):
        noisy(start(), batches(1)[0])
    assert torch.equal(after, torch.rand(1))  # the random numbers of a plain loop


@pytest.mark.parametrize("solver", ["neumann", "cg"])
@pytest.mark.parametrize("opt", [hft.sgd(lr=0.3), hft.sgd(lr=0.1, momentum=0.5)], ids=["sgd", "momentum"])
def test_implicit_equals_the_derivative_of_the_solution(solver, opt):
    """Ridge regression: w(l2) is known in closed form."""
    g = torch.Generator().manual_seed(0)
    a = torch.randn(20, 4, generator=g, dtype=torch.float64)
    y, target = torch.randn(20, generator=g, dtype=torch.float64), torch.ones(4, dtype=torch.float64)

    def ridge(params, _, h):
        return ((a @ params["w"] - y) ** 2).mean() / 2 + h["l2"] / 2 * (params["w"] ** 2).sum()

    def far(params):
        return ((params["w"] - target) ** 2).sum()

    def solved(l2):
        return far({"w": torch.linalg.solve(a.T @ a / 20 + l2 * torch.eye(4, dtype=torch.float64), a.T @ y / 20)})

    def implicit(l2, damping=0.0):
        strategy = hft.Implicit(solver=solver, iterations=300 if solver == "neumann" else 8, damping=damping)
        h = opt.hparams | {"loss": {"l2": l2}}
        w = {"w": torch.zeros(4, dtype=torch.float64)}
        return hft.hypergradient(opt, ridge, far, w, [None] * 300, over="loss.l2", hparams=h, strategy=strategy)

    l2 = torch.tensor(0.3, dtype=torch.float64)
    want = torch.func.grad(solved)(l2).item()
    assert implicit(l2)[1]["loss.l2"].item() == pytest.approx(want, rel=1e-8)

    # Damping is in units of dF/dp = lr (A + l2 I).
    lr, eye = opt.hparams["lr"], torch.eye(4, dtype=torch.float64)
    w = torch.linalg.solve(a.T @ a / 20 + l2 * eye, a.T @ y / 20)
    x = torch.linalg.solve(lr * (a.T @ a / 20 + l2 * eye) + 0.1 * eye, 2 * (w - target))
    assert implicit(l2, damping=0.1)[1]["loss.l2"].item() == pytest.approx((-x @ (lr * w)).item(), rel=1e-8)
    many = torch.func.vmap(lambda x: implicit(x)[1]["loss.l2"])(torch.stack([l2, 2 * l2]))
    wanted = [torch.func.grad(solved)(x).item() for x in (l2, 2 * l2)]
    assert many.tolist() == pytest.approx(wanted, rel=1e-8)


def test_implicit_of_weight_decay_and_of_a_learning_rate():
    opt = hft.sgd(lr=0.3, weight_decay=0.2)
    data = [torch.ones(1, dtype=torch.float64)] * 400
    square = lambda p, x: ((p - x) ** 2).sum() / 2  # noqa: E731
    _, grads, (p, _) = hft.hypergradient(
        opt, square, lambda p: p.sum(), torch.zeros(1, dtype=torch.float64), data,
        over=("lr", "weight_decay", "momentum"), strategy=hft.Implicit(iterations=300),
    )  # fmt: skip
    assert p.item() == pytest.approx(1 / 1.2)
    assert grads["weight_decay"].item() == pytest.approx(-1 / 1.2**2)
    for name in ("lr", "momentum"):  # they do not move the fixed point
        assert grads[name].item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("peer", ["torchopt", "loop"])
def test_agrees_with_independent_implementations_at_8_steps(peer):
    """SGD with momentum, float64, relative 1e-8."""
    lr, mu, data = torch.tensor(0.1, dtype=torch.float64), torch.tensor(0.9, dtype=torch.float64), batches(8)
    for x in (lr, mu):
        x.requires_grad_()
    params = {k: v.clone().requires_grad_() for k, v in start().items()}
    if peer == "torchopt":
        import torchopt

        opt = torchopt.sgd(lr, momentum=0.9)
        state = opt.init(params)
        for x in data:
            grads = torch.autograd.grad(loss(params, x), list(params.values()), create_graph=True)
            updates, state = opt.update(dict(zip(params, grads, strict=True)), state, inplace=False)
            params = torchopt.apply_updates(params, updates, inplace=False)
        names = ["lr"]
    else:
        buffers = None
        for x in data:
            grads = torch.autograd.grad(loss(params, x), list(params.values()), create_graph=True)
            buffers = grads if buffers is None else [mu * b + g for b, g in zip(buffers, grads, strict=True)]
            params = {k: p - lr * b for (k, p), b in zip(params.items(), buffers, strict=True)}
        names = ["lr", "momentum"]
    want = torch.autograd.grad(outer(params), [lr, mu][: len(names)])
    got = hft.hypergradient(hft.sgd(lr=0.1, momentum=0.9), loss, outer, start(), data, over=names)[1]
    assert [got[n].item() for n in names] == pytest.approx([x.item() for x in want], rel=1e-8)


def test_a_strategy_of_ones_own():
    class Central(Strategy):
        """Central differences of <cotangents, end of training> in the hparams; no derivative of anything else."""

        def run(self, steps, start):
            return steps.loop(start), start

        def pullback(self, steps, start, cotangents):
            given = cotangents.params

            def paired(hparams):
                end = steps.loop(start._replace(hparams=hparams)).params
                return sum((given[name] * end[name]).sum() for name in end)

            slopes = central_differences(paired, start.hparams)
            return TrainInputs(tree.flatten(start.hparams)[1](slopes), None, None, None)

    opt = hft.adamw(lr=0.1, eps=1e-2)
    mine, exact = (compute(opt, s, over=("lr", "eps"))[1] for s in (Central(), hft.Unroll()))
    assert {k: v.item() for k, v in mine.items()} == pytest.approx({k: v.item() for k, v in exact.items()}, rel=1e-6)


@pytest.mark.parametrize(
    ("lr", "over", "what"),
    [(1e200, "lr", "outer loss"), (0.1, "loss.x", "hypergradient of 'loss.x'")],
    ids=["the end", "a root at 0"],
)
def test_what_is_not_finite_is_told(lr, over, what):
    def own_loss(w, x, h):
        return w.square().sum() + h["x"].sqrt() * w.sum()

    w, own = torch.ones(2, dtype=torch.float64), {"x": torch.tensor(0.0, dtype=torch.float64)}
    with pytest.warns(UserWarning, match=f"^the {what} is not finite, so training") as told:
        hft.hypergradient(hft.sgd(lr=lr), own_loss, lambda w: w.square().sum(), w, [0] * 3, over, hparams={"loss": own})
    assert told[0].filename == __file__


def test_bad_input():
    opt, data = hft.sgd(lr=0.1), batches(2)

    def call(**changes):
        given = {"train_loss": loss, "outer_loss": outer, "params": start(), "batches": data} | changes
        return hft.hypergradient(opt, **given)

    with pytest.raises(ValueError, match=r"over names 'rate', but the hyperparameters are \['lr'"):
        call(over="rate")
    with pytest.raises(ValueError, match=r"train_loss must return a scalar .* got a tensor of shape \(4,\)"):
        call(train_loss=lambda p, x: p["b"])
    with pytest.raises(ValueError, match="outer_loss must return a scalar .* got float"):
        call(outer_loss=lambda p: 1.0)
    with pytest.raises(ValueError, match="batches has 2 steps, fewer than truncate = 3"):
        call(strategy=hft.Unroll(truncate=3))
    with pytest.raises(ValueError, match="batches is empty"):
        call(batches=[])
    with pytest.raises(TypeError, match="batches must be a sequence, it is read again; got list_iterator"):
        call(batches=iter(data))
    with pytest.raises(TypeError, match="params must be floating-point"):
        call(params={"w": torch.zeros(2, dtype=torch.int64)})
    with pytest.raises(TypeError, match="got OneStep .*it runs inside hyper"):
        call(strategy=hft.OneStep())
    with pytest.raises(ValueError, match="truncate must be None or a number of steps >= 1, got 0"):
        hft.Unroll(truncate=0)
    with pytest.raises(ValueError, match="checkpoint must be"):
        hft.Unroll(checkpoint="often")
    with pytest.raises(ValueError, match="solver must be one of 'neumann', 'cg', 'identity', got 'lu'"):
        hft.Implicit(solver="lu")
    with pytest.raises(ValueError, match="iterations must be a number of products >= 1"):
        hft.Implicit(iterations=0)
    with pytest.warns(UserWarning, match="hypergradient of 'lr' is exactly 0: the outer loss does not depend"):
        call(over="lr", outer_loss=lambda p: torch.tensor(1.0))


def test_a_warning_names_the_line_that_calls():
    def call():
        hft.hypergradient(hft.sgd(), loss, lambda p: torch.tensor(1.0), start(), batches(2), "lr")

    with pytest.warns(UserWarning, match="is exactly 0") as seen:
        call()
    assert [(w.filename, w.lineno) for w in seen] == [(__file__, call.__code__.co_firstlineno + 1)]


def test_a_loss_that_writes_in_place_is_refused():
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).double()
    params = {n: p.detach() for n, p in net.named_parameters()}

    def train_loss(p, x):
        return torch.func.functional_call(net, p, (x,)).square().mean()

    def call():
        return hft.hypergradient(
            hft.sgd(lr=0.1), train_loss, lambda p: train_loss(p, batches(1)[0]), params, batches(2), "lr"
        )

    with pytest.raises(RuntimeError, match="writes in place .* such as a running statistic .*BatchNorm"):
        call()
    net.eval()
    call()
