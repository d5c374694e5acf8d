"""What an optimizer of one's own may do in a step, and what is refused or warned of."""

from __future__ import annotations

import warnings
from contextlib import nullcontext

import pytest
import torch
from torch.nn import functional as F

import hyperopt_ftp as hft
from hyperopt_ftp.hyper import Strategy, TrainOutputs
from hyperopt_ftp.types import Optimizer

from ...support.own_updates import (
    DATA,
    F64,
    STRATEGIES,
    W,
    acts_later,
    loss,
    momentum,
    right,
    slopes,
    takes_float,
    takes_item,
)

every_strategy = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)


def trained(update, strategy=None, lr_requires_grad=True):
    opt = momentum(update)
    lr = torch.tensor(0.1, dtype=F64, requires_grad=lr_requires_grad)
    return hft.train(opt, loss, W, DATA, hparams={**opt.hparams, "lr": lr}, strategy=strategy).params


def writes_state(g, s, p, h):
    s["m"].mul_(h["b"]).add_(g)
    return p - h["lr"] * s["m"], s


def sets_data(g, s, p, h):
    p.data = p - h["lr"] * g
    return p, s


def writes_through_numpy(g, s, p, h):
    s["m"].detach().numpy()[...] = 1.0
    return p - h["lr"] * (g + s["m"]), s


def counts(g, s, p, h):
    t = s["t"].item() + 1
    m = h["b"] * s["m"] + (1 - h["b"]) * g
    return p - h["lr"] * m / (1 - h["b"] ** t), {"m": m, "t": s["t"] + 1}


def number_of_gradient(g, s, p, h):
    return p - h["lr"] * g / max(1.0, g.norm().item()), s


def halves_lr(g, s, p, h):
    return p - h["lr"].mul_(0.5) * g, s


WRITES = {
    "state": writes_state,
    "gradient": lambda g, s, p, h: (p - h["lr"] * g.clamp_(-1, 1), s),
    "params": lambda g, s, p, h: (p.sub_(h["lr"] * g), s),
    "data": sets_data,
    "NumPy": writes_through_numpy,
}


@every_strategy
@pytest.mark.parametrize("update", [takes_item, takes_float, acts_later])
def test_the_number_of_an_hparam_is_refused(update, strategy):
    opt = momentum(update)
    for _ in range(3):  # what was verified before the error does not count
        with pytest.raises(RuntimeError, match="optimizer takes the number of an hparam that a derivative is asked"):
            slopes(opt, strategy)


@pytest.mark.parametrize(
    "strategy", [*STRATEGIES.values(), hft.ZeroOrder(sigma=0.1, samples=2)], ids=[*STRATEGIES, "ZeroOrder"]
)
@pytest.mark.parametrize("update", WRITES.values(), ids=WRITES)
def test_writing_in_place_is_refused(update, strategy):
    with pytest.raises(RuntimeError, match=r"the optimizer writes in place.*Return new tensors"):
        trained(update, strategy)


@pytest.mark.parametrize("mode", [nullcontext, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("update", [WRITES["state"], WRITES["params"], halves_lr])
def test_writing_in_place_is_refused_where_nothing_is_differentiated(update, mode):
    """What the caller has given is not what it was, so the next training is another."""
    opt = momentum(update)
    state = opt.init(W, opt.hparams)
    with mode(), pytest.raises(RuntimeError, match=r"the optimizer writes in place.*of shape .*Return new tensors"):
        hft.train(opt, loss, W.clone(), DATA[:1], state=state)


def writes(when):
    """Right, but where ``when(state)`` says that it is not."""

    def update(g, s, p, h):
        if when(s):
            s["m"].add_(g)
        m = h["b"] * s["m"] + g
        return p - h["lr"] * m, {"m": m, "t": s["t"] + 1}

    return momentum(update)


def given():
    """Params and hparams that a derivative is asked for."""
    lr = torch.tensor(0.1, dtype=F64, requires_grad=True)
    return W.clone().requires_grad_(), {"lr": lr}


def run_of(opt, steps=1, **options):
    p, hparams = given()
    return hft.train(opt, loss, p, DATA[:steps], hparams=hparams, **options)


def walk(opt, **options):
    p, hparams = given()
    return hft.steps(opt, loss, p, DATA, hparams=hparams, **options)


class FromLater(Strategy):
    """One of somebody's own, whose updates get other states than those of the training."""

    def __call__(self, problem, inputs):
        state = {"m": torch.zeros_like(W), "t": torch.ones(())}
        *end, value = problem.step(inputs.params, state, inputs.batches[0], inputs.hparams)
        return TrainOutputs(*end, value.detach().reshape(1))


def a_second_step():
    opt = writes(lambda s: s["t"] > 0)
    return [lambda: run_of(opt), lambda: run_of(opt, 2)]


def another_init():
    opt = writes(lambda s: s["t"] > 0)
    later = opt._replace(init=lambda p, h=None: {"m": torch.zeros_like(p), "t": torch.ones(())})
    return [lambda: run_of(opt), lambda: run_of(later)]


def a_later_state():
    opt = writes(lambda s: s["t"] > 0)
    state = opt.init(W)
    return [lambda: run_of(opt, state=state), lambda: run_of(opt, state={**state, "t": state["t"] + 1})]


def a_state_of_init():
    opt, last = writes(lambda s: s["t"] == 0), hft.Unroll(truncate=1)
    state = opt.init(W)
    later = {**state, "t": state["t"] + 1}
    return [lambda: [*walk(opt, state=later, strategy=last)], lambda: run_of(opt, state=state, strategy=last)]


def after_a_strategy():
    opt = writes(lambda s: s["t"] == 0)
    return [lambda: run_of(opt, strategy=FromLater()), lambda: run_of(opt)]


def between_steps():
    wrong = [False]
    opt = writes(lambda s: wrong[0])

    def changed():
        for step in walk(opt):
            wrong[0] = step.k == 1

    return [lambda: [*walk(opt)], changed]


@pytest.mark.filterwarnings("ignore:params require grad")
@pytest.mark.parametrize(
    "case", [a_second_step, another_init, a_later_state, a_state_of_init, after_a_strategy, between_steps]
)
def test_what_was_seen_in_trainings_of_one_step_counts_for_such_states_alone(case):
    seen, wrong = case()
    for _ in range(3):
        seen()
    with pytest.raises(RuntimeError, match="the optimizer writes in place"):
        wrong()


@every_strategy
def test_a_count_in_the_state_may_be_a_number(strategy):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*makes a number.*")
        slopes(momentum(counts), strategy)


@pytest.mark.parametrize("strategy", [hft.Unroll(checkpoint=1), hft.Forward()], ids=repr)
def test_a_tensor_that_only_later_updates_close_over_is_refused(strategy):
    """The first ones are looked at, later ones by the graph that they make."""
    c = torch.tensor(0.5, dtype=F64, requires_grad=True)

    def update(g, s, p, h=None):
        return p - h["lr"] * (c if s["k"] == 3 else 1) * g, {"k": s["k"] + 1}

    opt = Optimizer(lambda p, h=None: {"k": 0}, update, {"lr": torch.tensor(0.1, dtype=F64)})
    lr = torch.tensor(0.1, dtype=F64, requires_grad=True)

    def slopes_of(of):
        run = hft.train(opt, loss, W, [DATA[0]] * 8, hparams={"lr": lr}, strategy=of)
        return torch.autograd.grad(run.params.sum(), [c, lr])

    with pytest.raises(ValueError, match="the optimizer uses a tensor .*no argument of train"):
        slopes_of(strategy)
    assert all(slopes_of(hft.Unroll()))  # autograd owns the graph


def test_a_tensor_of_a_transform_that_only_later_updates_close_over_is_refused():
    def end(lr, c):
        def update(g, s, p, h=None):
            return p - h["lr"] * (c if s["k"] == 3 else 1) * g, {"k": s["k"] + 1}

        opt = Optimizer(lambda p, h=None: {"k": 0}, update, {"lr": lr})
        return hft.train(opt, loss, W, [DATA[0]] * 8, strategy=hft.Implicit(tolerance=1e9)).params.sum()

    with pytest.raises(ValueError, match="the optimizer uses a tensor .*no argument of train"):
        torch.func.grad(end, (0, 1))(torch.tensor(0.1, dtype=F64), torch.tensor(0.5, dtype=F64))


@pytest.mark.parametrize("strategy", [s for s in STRATEGIES if s != "Implicit"])
@pytest.mark.parametrize("update", [lambda g, s, p, h: (p - h["lr"] * g.data, s), number_of_gradient])
def test_what_is_made_of_the_number_of_a_gradient_is_warned_of(update, strategy):
    for _ in range(2):  # the next training is warned of again
        with pytest.warns(UserWarning, match="the optimizer makes a number of a tensor that depends on") as caught:
            slopes(momentum(update), STRATEGIES[strategy])
        assert {x.filename for x in caught if "makes a number" in str(x.message)} == {__file__}


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")  # torch's, once in a process
@pytest.mark.parametrize(
    ("update", "transform"),
    [(takes_float, "grad"), (takes_float, "jvp"), (lambda g, s, p, h: (torch.add(p, g, alpha=-h["lr"]), s), "jvp")],
)
def test_under_a_transform_numbers_are_warned_of(update, transform):
    def end(lr):
        opt = momentum(update)
        return hft.train(opt, loss, W, DATA, hparams={**opt.hparams, "lr": lr}).params.sum()

    lr = torch.tensor(0.1, dtype=F64)
    for _ in range(3):
        with pytest.warns(UserWarning, match="the optimizer makes a number"):
            torch.func.grad(end)(lr) if transform == "grad" else torch.func.jvp(end, (lr,), (torch.ones_like(lr),))


@pytest.mark.parametrize(
    "update", [takes_float, number_of_gradient, lambda g, s, p, h: (p - torch.tensor(g.numpy()), s)]
)
def test_what_needs_no_derivative_may_take_numbers(update):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = trained(update, lr_requires_grad=False)
        assert torch.equal(plain, trained(update, hft.ZeroOrder(sigma=0.1, samples=2)))


def langevin():
    """Updates that are other ones each time they are computed: with a generator of their own."""
    own = torch.Generator().manual_seed(0)
    return lambda g, s, p, h: (p - h["lr"] * (g + 0.1 * torch.randn(p.shape, generator=own, dtype=F64)), s)


@pytest.mark.parametrize("strategy", ["every point", "log"])
def test_an_update_that_is_another_one_when_it_is_made_again_is_refused(strategy):
    with pytest.raises(RuntimeError, match=r"optimizer.update gives another result when a step is computed again"):
        slopes(momentum(langevin()), STRATEGIES[strategy])


def test_an_update_that_draws_is_run_once_a_step_where_graphs_are_kept():
    """A generator of its own: the training is that of the loop by hand, and so is the derivative."""
    own, lr, p = torch.Generator().manual_seed(0), torch.tensor(0.1, dtype=F64, requires_grad=True), W
    for _ in range(3):
        p = p - lr * (2 * (p - 1) + 0.1 * torch.randn(2, generator=own, dtype=F64))
    opt = momentum(langevin())
    run = hft.train(opt, loss, W, DATA, hparams={**opt.hparams, "lr": lr})
    torch.testing.assert_close(run.params, p, rtol=0, atol=0)
    got, want = (torch.autograd.grad(((end - 2) ** 2).sum(), lr)[0] for end in (run.params, p))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)


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

    found = [
        hft.hypergradient(opt, seen, lambda p: seen(p, data[0]), p, data, "lr", strategy=hft.Unroll(checkpoint=c))[1]
        for c in (1, "log", False)
    ]
    assert [x["lr"].item() for x in found] == pytest.approx([found[2]["lr"].item()] * 3, rel=1e-3)


NO_OPTIMIZER = [
    (Optimizer(lambda p: (), right, {}), TypeError, r"init\(params, hparams\), but takes 1 argument$"),
    (
        Optimizer(lambda p, h: (), lambda g, s, p: (p, s), {}),
        TypeError, r"update\(grads, state, params, hparams\), but takes 3 arguments$",
    ),
    (
        momentum(lambda g, s, p, h: (p - h["learning_rate"] * g, s)),
        ValueError, r"'learning_rate', .* did you mean 'lr'\?; there are hparams \['lr', 'b'\], state \['m', 't'\]$",
    ),
    (momentum(lambda g, s, p, h: (s, p)), TypeError, r"must return a tuple .* got \(state, params\)$"),
    (momentum(lambda g, s, p, h: p - g), TypeError, r"must return a tuple .* got tensor\("),
    (momentum(lambda g, s, p, h: ((p - g)[:1], s)), TypeError, r"must return a tuple .* with params in the"),
]  # fmt: skip


@pytest.mark.parametrize(("opt", "error", "text"), NO_OPTIMIZER)
@pytest.mark.parametrize("derived", [True, False])
def test_what_is_no_optimizer_is_told_what_one_is(opt, error, text, derived):
    with pytest.raises(error, match=text):
        hft.train(opt, loss, W.clone().requires_grad_(derived), DATA)
