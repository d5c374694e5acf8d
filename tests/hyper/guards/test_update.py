"""What an optimizer of one's own may do in a step, and for how long what was seen of it and of a loss is remembered."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import hyperopt_ftp as hft
from hyperopt_ftp.hyper.guards.update import LOOKS
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
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
W, DATA = torch.zeros(2, dtype=F64), [torch.ones(2, dtype=F64)] * 3


def loss(p, x):
    return ((p - x) ** 2).sum()


def momentum(update) -> Optimizer:
    """With a state ``m``, a count ``t``, and hparams ``lr`` and ``b``."""
    hparams = {"lr": torch.tensor(0.1, dtype=F64), "b": torch.tensor(0.9, dtype=F64)}
    return Optimizer(lambda p, h=None: {"m": torch.zeros_like(p), "t": torch.zeros(())}, update, hparams)


def trained(update, strategy=None, lr_requires_grad=True):
    opt = momentum(update)
    lr = torch.tensor(0.1, dtype=F64, requires_grad=lr_requires_grad)
    return hft.train(opt, loss, W, DATA, hparams={**opt.hparams, "lr": lr}, strategy=strategy).params


def slopes(opt: Optimizer, strategy: hft.hyper.Strategy, steps: int = 4) -> None:
    data, over = [torch.ones(2, dtype=F64)] * steps, ["lr", "b"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*(training has not converged|holds the optimizer's state|exactly 0).*")
        hft.hypergradient(opt, loss, lambda p: ((p - 2) ** 2).sum(), W, data, over=over, strategy=strategy)


def right(g, s, p, h):
    m = h["b"] * s["m"] + (1 - h["b"]) * g
    return p - h["lr"] * m, {**s, "m": m}


def takes_item(g, s, p, h):
    m = h["b"] * s["m"] + (1 - h["b"].item()) * g
    return p - h["lr"] * m, {**s, "m": m}


def takes_nothing(g, s, p, h):
    return p - h["lr"] * g, s


def takes_float(g, s, p, h):
    return p - float(h["lr"]) * g, s


def acts_later(g, s, p, h):
    if not s["m"].any():
        return p, {**s, "m": g}
    return p - float(h["lr"]) * (g + s["m"]) / 2, {**s, "m": torch.zeros_like(g)}


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


def test_writing_in_place_is_refused_in_a_later_update_too():
    """Where graphs are kept torch itself refuses it."""
    calls = []

    def update(g, s, p, h):
        calls.append(0)
        return (writes_state if len(calls) > 3 else right)(g, s, p, h)

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        slopes(momentum(update), hft.Unroll(), steps=6)


@every_strategy
def test_a_count_in_the_state_may_be_a_number(strategy):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*makes a number.*")
        slopes(momentum(counts), strategy)


@pytest.mark.parametrize("asks", [True, False])
@every_strategy
def test_a_tensor_that_is_closed_over_is_refused_where_a_node_hides_the_graph(strategy, asks):
    """Also where nothing else requires grad: its derivative would be lost. Autograd's own graph has it."""
    lr = torch.tensor(0.1, dtype=F64, requires_grad=True)
    closing = lambda g, s, p, h: (p - lr * h["lr"] * g, s)  # noqa: E731
    if strategy != hft.Unroll():
        with pytest.raises(ValueError, match="the optimizer uses a tensor of shape .* no argument of train"):
            trained(closing, strategy, asks)
        return
    (got,) = torch.autograd.grad(trained(closing, strategy, asks).sum(), lr)
    assert got.item() == pytest.approx(2 * 3 * 0.2 * (1 - 0.02) ** 2, rel=1e-12)  # of 1 - (1 - 0.2 lr)^3, twice


@pytest.mark.parametrize("strategy", [hft.Unroll(checkpoint=1), hft.Forward()], ids=repr)
def test_a_tensor_that_only_later_updates_close_over_is_refused(strategy):
    """The first ones are looked at, later ones by the graph that they make."""
    c = torch.tensor(0.5, dtype=F64, requires_grad=True)

    def update(g, s, p, h=None):
        return p - h["lr"] * (c if s["k"] == 3 else 1) * g, {"k": s["k"] + 1}

    opt = Optimizer(lambda p, h=None: {"k": 0}, update, {"lr": torch.tensor(0.1, dtype=F64)})
    lr = torch.tensor(0.1, dtype=F64, requires_grad=True)

    def slope(of):
        run = hft.train(opt, loss, W, [DATA[0]] * 8, hparams={"lr": lr}, strategy=of)
        return torch.autograd.grad(run.params.sum(), [c, lr])

    with pytest.raises(ValueError, match="the optimizer uses a tensor .*no argument of train"):
        slope(strategy)
    assert all(slope(hft.Unroll()))  # autograd owns the graph


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


def test_one_update_is_run_twice_to_be_compared():
    count = 0

    def counted(g, s, p, h):
        nonlocal count
        count += 1
        return right(g, s, p, h)

    opt, strategy = momentum(counted), hft.Unroll(checkpoint=1)
    hft.hypergradient(opt, loss, lambda p: p.sum(), W, DATA[:1] * 4, "lr", strategy=strategy)
    assert count == 4 + 4 + 1  # there, back, and the first one again


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


# -- what is remembered: as long as all that it depends on is as it was -----------------------------------------------

ROWS = [torch.randn(4, 3, dtype=F64, generator=torch.Generator().manual_seed(k)) for k in range(3)]
VECTORS = [torch.full((3,), 1.0 + k, dtype=F64) for k in range(3)]
SGD = hft.sgd(lr=0.01)


def slope(train_loss: Any, opt: Any = SGD, data: Any = VECTORS, over: str = "lr", **options: Any) -> Tensor:
    """Where steps are made again: what is captured, or written, is refused."""
    options = {"strategy": hft.Unroll(checkpoint=1)} | options
    given = torch.ones(3, dtype=F64)
    return hft.hypergradient(opt, train_loss, lambda p: p.sum(), given, data, over, **options)[1][over]


HELD = torch.zeros((), dtype=F64)


def squares(p: Tensor, x: Tensor, write: bool = False) -> Tensor:
    if write:
        HELD.add_(1)
    return (p * x - 1).square().sum()


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each look at the operations of a loss or an update: a mode of torch is put around them."""
    found, enter = [], TorchDispatchMode.__enter__

    def counted(self: TorchDispatchMode) -> Any:
        found.append(type(self).__name__)
        return enter(self)

    monkeypatch.setattr(TorchDispatchMode, "__enter__", counted)
    return found


def test_a_second_call_is_not_looked_at(looks: list[str]):
    opt = momentum(right)
    first = slope(squares, opt)
    assert looks == ["watched_operations"] * 5  # at the loss, and at two updates there and two back
    looks.clear()
    assert torch.equal(slope(squares, opt), first)
    assert looks == []
    for _ in range(3):  # a loss and an optimizer that are made anew for each call
        assert torch.equal(slope(lambda p, x: squares(p, x), momentum(lambda *given: right(*given))), first)
    assert looks == ["watched_operations"] * 5
    for change in (
        lambda: slope(squares, opt, [x[:1] for x in VECTORS]),  # other shapes, which take other memory
        lambda: slope(squares, momentum(takes_nothing)),
        lambda: slope(squares, opt, strategy=hft.Forward()),
    ):
        looks.clear()
        change()
        assert looks


def test_what_was_seen_is_remembered_where_calls_take_turns(looks: list[str]):
    opt = momentum(right)

    def turns() -> None:
        for strategy in (hft.Unroll(), hft.Forward()):
            for data in (VECTORS, VECTORS[:2]):
                slope(squares, opt, data, strategy=strategy)
        with torch.no_grad():
            hft.train(opt, squares, torch.ones(3, dtype=F64), VECTORS)

    turns()
    looks.clear()
    turns()
    assert looks == []
    for number in range(300):  # not all, for ever
        slope(lambda p, x, c=number: squares(p, x), opt, VECTORS[1:2])
    looks.clear()
    turns()
    assert looks


NESTS = {
    "grad": torch.func.grad,
    "grad of grad": lambda f: torch.func.grad(torch.func.grad(f)),
    "vmap": lambda f: lambda lr: torch.func.vmap(f)(lr[None]),
    "vmap of grad": lambda f: lambda lr: torch.func.vmap(torch.func.grad(f))(lr[None]),
    "jvp": lambda f: lambda lr: torch.func.jvp(f, (lr,), (lr,)),
}


def test_under_each_nest_of_transforms_updates_are_looked_at_once(monkeypatch: pytest.MonkeyPatch):
    looks, enter = [], TorchFunctionMode.__enter__

    def counted(self: TorchFunctionMode) -> Any:
        looks.append(type(self).__name__)
        return enter(self)

    monkeypatch.setattr(TorchFunctionMode, "__enter__", counted)

    def end(lr: Tensor) -> Tensor:
        return hft.train(opt, squares, given, VECTORS, hparams={"lr": lr}).params.sum()

    opt, given = momentum(right), torch.ones(3, dtype=F64)
    for nest in NESTS.values():
        counts = []
        for _ in range(2):
            looks.clear()
            nest(end)(torch.tensor(0.1, dtype=F64))
            counts.append(looks.count("watched_calls"))
        assert counts == [0 if nest is NESTS["vmap"] else LOOKS, 0]


def test_a_tensor_of_a_transform_is_refused_where_a_plain_one_was_seen():
    lr = scale = torch.tensor(0.1, dtype=F64)

    def end(lr: Tensor, captures: bool) -> Tensor:
        nonlocal scale
        scale = lr * 2 if captures else scale
        return hft.train(opt, squares, torch.ones(3, dtype=F64), VECTORS, strategy=strategy).params.sum() * lr

    opt = SGD._replace(update=lambda g, s, p, h: (p - h["lr"] * scale * g, s))
    strategy = hft.ZeroOrder(2, sigma=0.1)
    for captures in (False, False, True):
        refused = pytest.raises(ValueError, match="the optimizer uses a tensor of shape") if captures else nullcontext()
        with refused:
            torch.func.grad(end)(lr, captures)


@pytest.mark.parametrize("update", [takes_item, takes_float, acts_later])
def test_what_was_seen_where_it_is_allowed_does_not_count_elsewhere(update: Any):
    """Without a graph an update may take numbers; the updates of Forward have no graph, those of Implicit have."""
    opt = momentum(update)
    for strategy in [*STRATEGIES.values()] * 2:
        with torch.no_grad():
            hft.train(opt, loss, W, DATA, strategy=strategy)
        with pytest.raises(RuntimeError, match="optimizer takes the number of an hparam that a derivative is asked"):
            slopes(opt, strategy, len(DATA))


def test_an_hparam_of_the_loss_does_not_put_every_step_under_watch(looks: list[str]):
    def train_loss(p: Tensor, x: Tensor, h: Tensor) -> Tensor:
        return squares(p, x) + h * p.square().sum()

    slope(train_loss, over="loss", hparams={"loss": torch.tensor(0.1, dtype=F64)})
    assert len(looks) == 1


# Losses, and what makes them write in place. In training mode batch norm writes its statistics.

Changing = tuple[Callable[..., Tensor], Callable[[], Any]]


def norm() -> nn.Module:
    return nn.BatchNorm1d(3, dtype=F64).requires_grad_(False).eval()


def a_number() -> Changing:
    on = False

    def change() -> None:
        nonlocal on
        on = True

    return lambda p, x: squares(p, x, on), change


def a_dict() -> Changing:
    flags = {"on": False}
    return lambda p, x: squares(p, x, flags["on"]), lambda: flags.update(on=True)


def an_object() -> Changing:
    """Of any class, of which nothing is remembered."""
    flags = SimpleNamespace(on=False)
    return lambda p, x: squares(p, x, flags.on), lambda: setattr(flags, "on", True)


def defaults() -> Changing:
    def train_loss(p: Tensor, x: Tensor, extra: bool = False) -> Tensor:
        return squares(p, x, extra)

    return train_loss, lambda: setattr(train_loss, "__defaults__", (True,))


def code() -> Changing:
    first, second = (lambda p, x: squares(p, x)), (lambda p, x: squares(p, x, True))
    return first, lambda: setattr(first, "__code__", second.__code__)


NETS = {"norm": norm()}


def the_mode_of_a_module_in_a_global_dict() -> Changing:
    return lambda p, x: NETS["norm"](p * x).sum(), NETS["norm"].train


def the_module() -> Changing:
    net = norm()

    def change() -> None:
        nonlocal net
        net = norm().train()

    return lambda p, x: net(p * x).sum(), change


CHANGES = [
    a_number, a_dict, an_object, defaults, code, the_mode_of_a_module_in_a_global_dict, the_module,
]  # fmt: skip


@pytest.mark.parametrize("make", CHANGES, ids=lambda make: make.__name__)
def test_a_loss_is_looked_at_again_where_what_it_depends_on_has_changed(make: Callable[[], Changing]):
    train_loss, change = make()
    slope(train_loss, data=ROWS)
    change()
    with pytest.raises(RuntimeError, match="train_loss writes in place"):
        slope(train_loss, data=ROWS)


def test_code_at_the_address_of_code_that_has_gone_is_looked_at():
    def made(write: bool) -> Any:
        return eval(f"lambda p, x: squares(p, x, {write})").__code__

    train_loss = lambda p, x: None  # noqa: E731
    other, train_loss.__code__ = train_loss.__code__, made(False)
    address = id(train_loss.__code__)
    slope(train_loss)
    train_loss.__code__, codes = other, [made(True)]
    while id(codes[-1]) != address and len(codes) < 1000:
        codes.append(made(True))
    train_loss.__code__ = codes[-1]
    with pytest.raises(RuntimeError, match="train_loss writes in place"):
        slope(train_loss)


def test_a_value_in_the_batches_is_an_argument():
    def train_loss(p: Tensor, batch: Any) -> Tensor:
        return squares(p, *batch)

    slope(train_loss, data=[(x, False) for x in VECTORS])
    with pytest.raises(RuntimeError, match="train_loss writes in place"):
        slope(train_loss, data=[(x, True) for x in VECTORS])


@pytest.mark.parametrize("how", ["number", "tensor", "module"])
def test_an_update_is_looked_at_again_where_what_it_closes_over_has_changed(how: str):
    flags, scale, net = {"on": False}, torch.ones((), dtype=F64), nn.Linear(1, 1, dtype=F64).requires_grad_(False)

    def update(g: Tensor, s: Any, p: Tensor, h: Any) -> Any:
        rate = 0.5 * h["lr"].item() + 0.5 * h["lr"] if flags["on"] else h["lr"]
        return p - rate * g * scale * net.weight.reshape(()).sigmoid(), s

    opt = SGD._replace(update=update)
    slope(squares, opt)
    {"number": lambda: flags.update(on=True), "tensor": scale.requires_grad_, "module": net.requires_grad_}[how]()
    with pytest.raises((RuntimeError, ValueError), match="the optimizer (takes the number|uses a tensor)"):
        slope(squares, opt)


def test_nothing_is_held_that_the_loss_has_used():
    net = nn.Linear(3, 3, dtype=F64).requires_grad_(False)
    gone = weakref.ref(net.weight)

    def train_loss(p: Tensor, x: Tensor) -> Tensor:
        return net(p * x).square().sum()

    slope(train_loss)
    net = nn.Identity()
    gc.collect()
    assert gone() is None


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_batches():
    rows = torch.nested.nested_tensor([torch.ones(2, 3, dtype=F64), torch.ones(4, 3, dtype=F64)])

    def train_loss(p: Tensor, x: Tensor) -> Tensor:
        return torch.stack([(row @ p - 1).square().mean() for row in x.unbind()]).sum()

    assert slope(train_loss, data=[rows] * 2) != 0
