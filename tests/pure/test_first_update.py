"""What an optimizer of one's own may not do in a step: refused or warned of by every strategy, with its name."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.nn import functional as F

import hyperopt_ftp as hft
from hyperopt_ftp.types import Optimizer

F64 = torch.float64
STRATEGIES = {
    "Unroll()": hft.Unroll(),
    "every point": hft.Unroll(checkpoint=1),
    "log": hft.Unroll(checkpoint="log"),
    "Forward": hft.Forward(),
    "Forward, chunks": hft.Forward(chunk=1),
    "Implicit": hft.Implicit(solver="neumann", tolerance=1e9),
}
REPLAYED = {name: STRATEGIES[name] for name in ("every point", "log")}


W, DATA = torch.zeros(2, dtype=F64), [torch.ones(2, dtype=F64)] * 3


def loss(p, x):
    return ((p - x) ** 2).sum()


def momentum(update) -> Optimizer:
    """With a state ``m``, and hparams ``lr`` and ``b``."""
    hparams = {"lr": torch.tensor(0.1, dtype=F64), "b": torch.tensor(0.9, dtype=F64)}
    return Optimizer(lambda p, h=None: {"m": torch.zeros_like(p)}, update, hparams)


def slopes(opt: Optimizer, strategy: hft.hyper.Strategy | None, steps: int = 4) -> dict[str, float]:
    w, data = torch.zeros(2, dtype=F64), [torch.ones(2, dtype=F64)] * steps
    outer = lambda p: ((p - 2) ** 2).sum()  # noqa: E731
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*(training has not converged|holds the optimizer's state|exactly 0).*")
        grads = hft.hypergradient(opt, loss, outer, w, data, over=["lr", "b"], strategy=strategy)[1]
    return {name: grad.item() for name, grad in grads.items()}


def right(g, s, p, h):
    m = h["b"] * s["m"] + (1 - h["b"]) * g
    return p - h["lr"] * m, {"m": m}


def takes_item(g, s, p, h):
    m = h["b"] * s["m"] + (1 - h["b"].item()) * g
    return p - h["lr"] * m, {"m": m}


def takes_float(g, s, p, h):
    return p - float(h["lr"]) * g, s


def acts_later(g, s, p, h):
    if not s["m"].any():
        return p, {"m": g}
    return p - float(h["lr"]) * (g + s["m"]) / 2, {"m": torch.zeros_like(g)}


def writes_state(g, s, p, h):
    s["m"].mul_(h["b"]).add_(g)
    return p - h["lr"] * s["m"], s


def writes_gradient(g, s, p, h):
    return p - h["lr"] * g.clamp_(-1, 1), s


def writes_through_numpy(g, s, p, h):
    s["m"].detach().numpy()[...] = 1.0
    return p - h["lr"] * (g + s["m"]), s


def writes_params(g, s, p, h):
    return p.sub_(h["lr"] * g), s


def sets_data(g, s, p, h):
    p.data = p - h["lr"] * g
    return p, s


def data_of(g, s, p, h):
    return p - h["lr"] * g.data, s


def number_of_gradient(g, s, p, h):
    return p - h["lr"] * g / max(1.0, g.norm().item()), s


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("update", [takes_item, takes_float, acts_later])
def test_the_number_of_an_hparam_is_refused(update, strategy):
    opt = momentum(update)
    for _ in range(3):  # what was verified before the error does not count
        with pytest.raises(RuntimeError, match="optimizer takes the number of an hparam that a derivative is asked"):
            slopes(opt, STRATEGIES[strategy])


@pytest.mark.parametrize("strategy", [*STRATEGIES, "ZeroOrder"])
@pytest.mark.parametrize("update", [writes_state, writes_gradient, writes_params, writes_through_numpy, sets_data])
def test_writing_in_place_is_refused(update, strategy):
    how = STRATEGIES.get(strategy, hft.ZeroOrder(sigma=0.1, samples=2))
    lr = torch.tensor(0.1, dtype=F64, requires_grad=True)
    opt = momentum(update)
    with pytest.raises(RuntimeError, match=r"the optimizer writes in place.*Return new tensors"):
        hft.train(opt, loss, W, DATA, hparams={**opt.hparams, "lr": lr}, strategy=how)


def counts(g, s, p, h):
    t = s["t"].item() + 1
    m = h["b"] * s["m"] + (1 - h["b"]) * g
    return p - h["lr"] * m / (1 - h["b"] ** t), {"m": m, "t": s["t"] + 1}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_count_in_the_state_may_be_a_number(strategy):
    opt = momentum(counts)._replace(init=lambda p, h=None: {"m": torch.zeros_like(p), "t": torch.zeros(())})
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*makes a number.*")
        slopes(opt, STRATEGIES[strategy])


@pytest.mark.parametrize("asks", [True, False])
@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_a_tensor_that_is_closed_over_is_refused(strategy, asks):
    """Also where nothing else requires grad: its derivative would be lost."""
    lr, b = (torch.tensor(x, dtype=F64, requires_grad=asks or x == 0.1) for x in (0.1, 0.9))
    opt = momentum(lambda g, s, p, h: (p - lr * h["b"] * g, s))
    with pytest.raises(ValueError, match="the optimizer uses a tensor of shape .* no argument of train"):
        hft.train(opt, loss, W, DATA, hparams={"b": b}, strategy=strategy)


def test_writing_in_place_is_refused_in_a_later_update_too():
    """Where graphs are kept torch refuses it, in words about leaves."""
    calls = []

    def update(g, s, p, h):
        calls.append(0)
        return (writes_state if len(calls) > 3 else right)(g, s, p, h)

    with pytest.raises(RuntimeError, match="the optimizer writes in place.*Return new tensors"):
        slopes(momentum(update), hft.Unroll(), steps=6)


@pytest.mark.parametrize("strategy", [s for s in STRATEGIES if s != "Implicit"])
@pytest.mark.parametrize("update", [data_of, number_of_gradient])
def test_what_is_made_of_the_number_of_a_gradient_is_warned_of(update, strategy):
    with pytest.warns(UserWarning, match="the optimizer makes a number of a tensor that depends on") as caught:
        slopes(momentum(update), STRATEGIES[strategy])
    assert {x.filename for x in caught if "makes a number" in str(x.message)} == {__file__}


def as_alpha(g, s, p, h):
    return torch.add(p, g, alpha=-h["lr"]), s


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")  # torch's, once in a process
@pytest.mark.parametrize(("update", "transform"), [(takes_float, "grad"), (takes_float, "jvp"), (as_alpha, "jvp")])
def test_under_a_transform_numbers_are_warned_of(update, transform):
    def end(lr):
        opt = momentum(update)
        return hft.train(opt, loss, W, DATA, hparams={**opt.hparams, "lr": lr}).params.sum()

    lr = torch.tensor(0.1, dtype=F64)
    with pytest.warns(UserWarning, match="the optimizer makes a number"):
        torch.func.grad(end)(lr) if transform == "grad" else torch.func.jvp(end, (lr,), (torch.ones_like(lr),))


@pytest.mark.parametrize(
    "update", [takes_float, number_of_gradient, lambda g, s, p, h: (p - torch.tensor(g.numpy()), s)]
)
def test_what_needs_no_derivative_may_take_numbers(update):
    opt = momentum(update)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = hft.train(opt, loss, W, DATA).params
        lr = torch.tensor(0.1, dtype=F64, requires_grad=True)
        sampled = hft.train(
            opt, loss, W, DATA, hparams={**opt.hparams, "lr": lr}, strategy=hft.ZeroOrder(sigma=0.1, samples=2)
        )
    assert torch.equal(plain, sampled.params)


def random(how: str):
    """Updates that are other ones each time they are computed."""
    own, calls = torch.Generator().manual_seed(0), [0]

    def update(g, s, p, h):
        calls[0] += 1
        if how == "generator":
            return p - h["lr"] * (g + 0.1 * torch.randn(p.shape, generator=own, dtype=F64)), s
        return p - h["lr"] * g / calls[0], s

    return update


@pytest.mark.parametrize("strategy", REPLAYED)
@pytest.mark.parametrize("how", ["generator", "counter"])
def test_an_update_that_is_another_one_when_it_is_made_again_is_refused(how, strategy):
    with pytest.raises(RuntimeError, match=r"optimizer.update gives another result when a step is computed again"):
        slopes(momentum(random(how)), REPLAYED[strategy])


SIGNS = {"lion": hft.lion(1e-3), "signum": hft.signum(1e-3), "adam": hft.adam(1e-3, eps=1e-12)}


@pytest.mark.parametrize("opt", SIGNS.values(), ids=SIGNS)
def test_rounding_in_a_gradient_of_zero_is_no_other_update(opt):
    """A gradient that is made again goes through other kernels, and a sign makes a whole step of its last bit."""
    g = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=g) * 0.3  # noqa: E731
    p = {"w": draw(8, 16), "shift": torch.zeros(1), "o": draw(16, 8)}
    data = [(torch.randn(32, 8, generator=g), torch.randint(0, 8, (32,), generator=g)) for _ in range(8)]

    def seen(p, batch):  # softmax does not see shift
        a = torch.softmax(F.silu(batch[0] @ p["w"]) + p["shift"], -1)
        return F.cross_entropy(F.silu(a * 16) @ p["o"], batch[1])

    outer = lambda p: seen(p, data[0])  # noqa: E731
    found = [
        hft.hypergradient(opt, seen, outer, p, data, over="lr", strategy=hft.Unroll(checkpoint=c))[1]["lr"]
        for c in (1, "log", False)
    ]
    assert found[0].item() == pytest.approx(found[2].item(), rel=1e-3)
    assert found[1].item() == pytest.approx(found[2].item(), rel=1e-3)


def test_an_update_that_draws_is_run_once_a_step_where_graphs_are_kept():
    """A generator of its own: the training is that of the loop by hand, and so is the derivative."""
    own = torch.Generator().manual_seed(0)
    lr = torch.tensor(0.1, dtype=F64, requires_grad=True)
    p = W
    for _ in range(3):
        p = p - lr * (2 * (p - 1) + 0.1 * torch.randn(2, generator=own, dtype=F64))
    ((p - 2) ** 2).sum().backward()
    opt = momentum(random("generator"))
    run = hft.train(opt, loss, W, DATA, hparams={**opt.hparams, "lr": (h := lr.detach().requires_grad_())})
    ((run.params - 2) ** 2).sum().backward()
    torch.testing.assert_close(run.params, p, rtol=0, atol=0)
    torch.testing.assert_close(h.grad, lr.grad, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("opt", "error", "text"),
    [
        (Optimizer(lambda p: (), right, {}), TypeError, r"init\(params, hparams\), but takes 1 argument$"),
        (
            Optimizer(lambda p, h: (), lambda g, s, p: (p, s), {}),
            TypeError, r"update\(grads, state, params, hparams\), but takes 3 arguments$",
        ),
        (
            momentum(lambda g, s, p, h: (p - h["learning_rate"] * g, s)),
            ValueError, r"'learning_rate', .* did you mean 'lr'\?; there are hparams \['lr', 'b'\], state \['m'\]$",
        ),
        (momentum(lambda g, s, p, h: (s, p)), TypeError, r"must return a tuple .* got \(state, params\)$"),
        (momentum(lambda g, s, p, h: p - g), TypeError, r"must return a tuple .* got tensor\("),
        (momentum(lambda g, s, p, h: ((p - g)[:1], s)), TypeError, r"must return a tuple .* with params in the"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("derived", [True, False])
def test_what_is_no_optimizer_is_told_what_one_is(opt, error, text, derived):
    w = torch.zeros(2, dtype=F64, requires_grad=derived)
    with pytest.raises(error, match=text):
        hft.train(opt, loss, w, [torch.ones(2, dtype=F64)] * 2)
