"""Compiled steps against the same steps as they are written. Minutes: run by ``make test-compiled``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._inductor import cpp_builder
from torch._inductor.exc import InvalidCxxCompiler
from torch.func import functional_call
from torch.nn import functional as F

import hyperopt_ftp as hft
from hyperopt_ftp import tree
from hyperopt_ftp.hyper.unrolling import compiled as compiled_module
from hyperopt_ftp.hyper.unrolling import scan as scan_module
from hyperopt_ftp.hyper.unrolling.compiled import CompiledSteps
from hyperopt_ftp.hyper.unrolling.programs import program

from ..pure.train_problems import PROBLEMS, Problem
from ..support.cases import CASES, Case
from ..support.problems import batches, central_differences, largest_difference, loss, start

F64 = torch.float64
CHEAP = "eager"  # the programs without the code that inductor makes of them: three seconds, not twenty
PAIRS = {"unroll": (hft.Unroll, hft.Unroll()), "forward": (hft.Forward, hft.Forward())}
every_strategy = pytest.mark.parametrize("name", PAIRS)
# A compilation is said in the log and, from the second on, in a warning, which is an error here.
pytestmark = [
    pytest.mark.filterwarnings("ignore:the hypergradient of .* is exactly 0"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated"),  # torch's own
]


@pytest.fixture(autouse=True)
def programs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The programs that have run, by name; none is left from the test before."""
    program.cache_clear()
    ran: list[str] = []
    for name in ("_run", "_back", "along"):
        monkeypatch.setattr(CompiledSteps, name, spy(getattr(CompiledSteps, name), name, ran))
    yield ran
    torch._dynamo.reset()


def spy(run: Any, name: str, ran: list[str]) -> Any:
    def wrapped(*given: Any) -> Any:
        ran.append(name)
        return run(*given)

    return wrapped


RAN = {"unroll": {"_run": 1, "_back": 1}, "forward": {"along": 1}}  # once for all steps


def counted(ran: list[str]) -> dict[str, int]:
    return {name: ran.count(name) for name in sorted(set(ran), key=ran.index)}


# -- equal to the steps as they are written ---------------------------------------------------------------------------

# Sums in another order, over three steps of values of order 1, divided by roots that are at least 1e-2.
CLOSE = 1e-12


@every_strategy
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_optimizer_has_the_same_hypergradient(case: Case, name: str, programs: list[str]):
    opt, data, (kind, eager) = case.build(), batches(3), PAIRS[name]
    outer = lambda p: loss(p, data[0])  # noqa: E731
    got = hft.hypergradient(opt, loss, outer, start(), data, strategy=kind(compile=CHEAP))
    assert counted(programs) == RAN[name]
    want = hft.hypergradient(opt, loss, outer, start(), data, strategy=eager)
    assert largest_difference(got, want) <= CLOSE
    assert counted(programs) == RAN[name]


# Torch's compiler does not take these.
NOT_TAKEN = {"lstm", "checkpoint", "checkpointed attention", "own function", "own function everywhere"}
# Refused as they are written too (weight norm), or drawn otherwise than there (dropout: by central differences, below).
KNOWN = [p for p in PROBLEMS if "dropout" not in p.name and p.name != "weight norm" and p.autocast != "around"]


@every_strategy
@pytest.mark.parametrize("problem", KNOWN, ids=str)
def test_every_loss_has_the_same_derivatives_in_everything(problem: Problem, name: str):
    kind, eager = PAIRS[name]

    def slopes(strategy: Any) -> list[Tensor]:
        leaves = [x.detach().requires_grad_() for x in problem.inputs]
        return list(torch.autograd.grad(problem.value(leaves, strategy), leaves, materialize_grads=True))

    if problem.name in NOT_TAKEN:
        with pytest.raises(RuntimeError, match="(?s)cannot be compiled: .*leave out compile=True|saved tensor hooks"):
            slopes(kind(compile=CHEAP))
        return
    got, want = slopes(kind(compile=CHEAP)), slopes(eager)
    slack = 1e-11
    if problem.autocast:  # tangents are rounded to 16 bits in another order, of all that goes into a sum
        eps = torch.finfo(torch.bfloat16 if name == "forward" else torch.float32).eps
        slack = eps * max(x.abs().max().item() for x in want)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=slack)


# -- by inductor ------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """Attention, dropout and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(3).eval()
        self.register_buffer("scale", torch.tensor([0.5, 1.0, 2.0, 1.5]))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (y.unflatten(-1, (2, 2)).transpose(1, 2) for y in self.qkv(x * self.scale).chunk(3, -1))
        x = F.dropout(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2), 0.2)
        return self.norm(self.out(torch.tanh(x)).mean(1))


def attention() -> tuple[Any, dict[str, Tensor], list[Any]]:
    torch.manual_seed(1)
    net = Net().to(F64)
    data = [{"x": torch.randn(6, 5, 4, dtype=F64), "y": torch.randint(3, (6,))} for _ in range(4)]

    def loss(p: Any, batch: Any) -> Tensor:
        return F.cross_entropy(functional_call(net, p, (batch["x"],)), batch["y"])

    return loss, {k: p.detach() for k, p in net.named_parameters()}, data


@every_strategy
def test_dropout_and_attention_by_central_differences(name: str):
    train_loss, params, data = attention()
    strategy = PAIRS[name][0](compile=True)
    opt = hft.adam(eps=1e-2)

    def value(lr: Tensor) -> Tensor:
        torch.manual_seed(3)
        run = hft.train(opt, train_loss, params, data, hparams={**opt.hparams, "lr": lr}, strategy=strategy)
        return sum(p.square().sum() for p in run.params.values())

    lr = torch.tensor(0.1, dtype=F64, requires_grad=True)
    (got,) = torch.autograd.grad(value(lr), lr)
    random = torch.rand(())
    # With a derivative asked for: without one the steps run as they are written, with other random numbers.
    (want,) = central_differences(lambda x: value(x.detach().requires_grad_()).detach(), lr.detach())
    torch.testing.assert_close(got, want, rtol=1e-7, atol=0)
    value(lr)
    assert torch.equal(random, torch.rand(()))  # the way back has left them as they were


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_strategy
def test_inductor_in_other_dtypes(name: str, dtype: torch.dtype):
    # With 1 - beta at 0.1 or more no rounding of these grows by more than 10.
    opt, data, (kind, eager) = hft.adamw(lr=0.1, betas=(0.9, 0.9), eps=1e-2), batches(4), PAIRS[name]
    outer = lambda p: loss(p, data[0]).float()  # noqa: E731
    got, want = (
        hft.hypergradient(opt, loss, outer, start(dtype), data, ("lr", "betas"), strategy=s)[1]
        for s in (kind(compile=True), eager)
    )
    # A step's rounding, four times, as far as it shows in a difference of weights of order 1 over a rate of 0.1.
    slack = 40 * torch.finfo(dtype).eps
    for a, b in zip(tree.leaves(got), tree.leaves(want), strict=True):
        assert (a - b).abs() <= slack * max(1.0, b.abs())


def test_a_tower_and_its_update():
    tower = hft.hyper(hft.sgd(lr=0.05), by=hft.hyper(hft.sgd(lr=1e-3), by=hft.sgd(lr=1e-6), over="lr"), over="lr")
    data, outer = batches(3), lambda p: loss(p, batches(1)[0])
    got, want = (
        hft.hypergradient(tower, loss, outer, start(), data, "by.by.lr", strategy=hft.Unroll(compile=how))
        for how in (True, False)
    )
    assert largest_difference(got, want) <= CLOSE
    update, params = torch.compile(tower.update, fullgraph=True), start()
    state = tower.init(params)
    for x in data:
        grads = torch.func.grad(loss)(params, x)
        eager = tower.update(grads, state, params, tower.hparams)
        assert largest_difference(update(grads, state, params, tower.hparams), eager) <= CLOSE
        params, state = eager


# -- options together -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "runs"),
    [
        ({"checkpoint": 3}, {"_run": 14, "_back": 7}),  # 20 steps in 7 stretches, each twice
        ({"checkpoint": "sqrt"}, {"_run": 10, "_back": 5}),
        ({"checkpoint": "auto", "memory": 8 * 40 * 20}, {"_run": 10, "_back": 5}),
        ({"checkpoint": "auto", "memory": 2**20}, {"_run": 1, "_back": 1}),
        ({"truncate": 4}, {"_run": 3, "_back": 1}),  # 16 steps in 2 stretches
    ],
    ids=str,
)
def test_points_are_found_again_by_the_program(options: dict[str, Any], runs: dict[str, int], programs: list[str]):
    opt, data = hft.adam(lr=0.1, eps=1e-2), batches(20)
    outer = lambda p: loss(p, data[0])  # noqa: E731
    got, want = (
        hft.hypergradient(opt, loss, outer, start(), data, "lr", strategy=strategy)
        for strategy in (
            hft.Unroll(compile=CHEAP, **options),
            hft.Unroll(truncate=options.get("truncate")),
        )
    )
    assert largest_difference(got, want) <= CLOSE
    assert counted(programs) == runs


@every_strategy
def test_twice_back_and_the_derivative_of_the_derivative(name: str):
    opt, lr = hft.sgd(), torch.tensor(0.1, dtype=F64, requires_grad=True)
    rows = []
    for strategy in (PAIRS[name][0](compile=CHEAP), PAIRS[name][1]):
        run = hft.train(opt, loss, start(), batches(3), hparams={**opt.hparams, "lr": lr}, strategy=strategy)
        value = loss(run.params, batches(1)[0])
        first, again = (torch.autograd.grad(value, lr, retain_graph=True)[0] for _ in range(2))
        assert torch.equal(first, again)
        (slope,) = torch.autograd.grad(value, lr, create_graph=True)
        rows.append([first, torch.autograd.grad(slope, lr)[0]])
    torch.testing.assert_close(*rows, rtol=1e-10, atol=1e-12)


def test_rounds_of_bilevel_share_the_programs(caplog: Any):
    def rounds(strategy: Any) -> list[float]:
        found = []
        for record in hft.bilevel(
            hft.adam(lr=1e-2, eps=1e-2), hft.adam(lr=0.1), "lr", loss, loss, start(), batches(4), batches(2),
            inner_steps=4, outer_steps=3, constrain={"lr": "log"}, strategy=strategy,
        ):  # fmt: skip
            found.append(record.tuned["lr"].item())
        return found

    caplog.set_level("INFO", "hyperopt_ftp")
    got = rounds(hft.Unroll(compile=CHEAP))
    lines = [r.message for r in caplog.records if r.name == "hyperopt_ftp"]
    begins = [line.partition(":")[0].partition(" in ")[0] for line in lines]
    assert begins == [
        f"{verb} the {what} program" for what in ("training", "backward") for verb in ("compiling", "compiled")
    ]
    caplog.clear()
    assert rounds(hft.Unroll(compile=CHEAP)) == got  # another object: the same programs
    assert not caplog.records
    assert got == pytest.approx(rounds(hft.Unroll()), rel=1e-10)


# -- what changes -----------------------------------------------------------------------------------------------------


def slope(train_loss: Any, data: list[Any], strategy: Any, **hparams: Any) -> Tensor:
    opt = hft.sgd(lr=0.1)
    outer = lambda p: p["w"].square().sum()  # noqa: E731
    return hft.hypergradient(
        opt, train_loss, outer, start(), data, "lr", {**opt.hparams, **hparams}, strategy=strategy
    )[1]["lr"]


@every_strategy
def test_a_loss_made_anew_is_the_new_one(name: str):
    def made(factor: float, held: Tensor) -> Any:
        return lambda p, x: factor * loss(p, x) + (held * p["b"]).sum()

    compiled, eager = PAIRS[name][0](compile=CHEAP), PAIRS[name][1]
    for i in range(4):
        for held in (torch.ones(4, dtype=F64), torch.full((4,), 3.0, dtype=F64)):
            new = made(1.0, held + i)
            torch.testing.assert_close(slope(new, batches(3), compiled), slope(new, batches(3), eager))
    other = made(2.0, torch.ones(4, dtype=F64))
    with pytest.warns(UserWarning, match="compiled again: something that the training loss or the optimizer closes ov"):
        got = slope(other, batches(3), compiled)
    torch.testing.assert_close(got, slope(other, batches(3), eager))


@every_strategy
def test_shapes_of_one_run_have_programs_of_their_own_and_another_one_is_said(name: str, caplog: Any):
    compiled, eager = PAIRS[name][0](compile=CHEAP), PAIRS[name][1]
    data = [batches(1)[0][: n or None] for n in (0, 0, 4, 0, 3)]
    for _ in range(2):
        got = slope(loss, data, compiled)  # a warning would be an error
        torch.testing.assert_close(got, slope(loss, data, eager))
    with pytest.raises(ValueError, match="more than 3 are met: .*float64 of shape .*Pad the batches"):
        slope(loss, [*data, data[0][:2]], compiled)
    for n in (4, 7):  # any number of steps
        torch.testing.assert_close(slope(loss, batches(n), compiled), slope(loss, batches(n), eager))
    with pytest.warns(
        UserWarning, match=r"batches is float64 one for each step, of shape \(1, 3\) on cpu and was float64"
    ):
        slope(loss, [x[:1] for x in batches(3)], compiled)
    with pytest.warns(
        UserWarning, match=r"batches is float64 the same for each step, of shape \(5, 3\) on cpu and was"
    ):
        got = slope(loss, data[:1] * 3, compiled)
    torch.testing.assert_close(got, slope(loss, data[:1] * 3, eager))


def test_batches_that_are_one_tensor_are_not_copied(monkeypatch: pytest.MonkeyPatch):
    whole, copied = torch.stack(batches(6)), []
    monkeypatch.setattr(torch, "stack", lambda *given, stack=torch.stack: copied.append(given) or stack(*given))
    rows = list(whole)
    assert compiled_module._stacked(rows[1:4]).data_ptr() == rows[1].data_ptr()
    assert not copied
    same = compiled_module._stacked(rows[:1] * 3)
    assert same.data_ptr() == rows[0].data_ptr()
    assert same.shape == (3, *rows[0].shape)
    assert not copied
    for other in (rows[::2], rows[:2] + rows[:1], [x.t() for x in rows], [rows[0], rows[1].clone()]):
        torch.testing.assert_close(compiled_module._stacked(other), torch.stack(tuple(other)))
    assert len(copied) == 8


# -- what is refused --------------------------------------------------------------------------------------------------


def branches(p: Any, x: Tensor) -> Tensor:
    return loss(p, x) if p["w"].sum() > 0 else 2 * loss(p, x)


HELD = torch.zeros(4, dtype=F64)


def writes(p: Any, x: Tensor) -> Tensor:
    HELD.add_(1.0)
    return loss(p, x) + (HELD * p["b"]).sum()


TRACKED = torch.ones(4, dtype=F64, requires_grad=True)


def uses_a_stranger(p: Any, x: Tensor) -> Tensor:
    return loss(p, x) + (TRACKED * p["b"]).sum()


class Rounded(torch.autograd.Function):
    """Compiled, torch derives it from its forward, and nothing would be trained."""

    @staticmethod
    def forward(x):
        return torch.round(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *grads):
        return grads[0]


class Cubed(torch.autograd.Function):
    """Compiled, torch takes its backward for a constant, and the second derivative is lost."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, *grads):
        return 3 * ctx.saved_tensors[0] ** 2 * grads[0]


def rounds(p: Any, x: Tensor) -> Tensor:
    return loss(p, x) + (Rounded.apply(p["b"]) * p["b"]).sum()


def cubes(p: Any, x: Tensor) -> Tensor:
    return loss(p, x) + Cubed.apply(p["b"]).square().sum()


@every_strategy
@pytest.mark.parametrize(
    ("train_loss", "error", "text"),
    [
        (rounds, RuntimeError, "cannot be compiled: train_loss goes through Rounded, a torch.autograd.Function"),
        (cubes, RuntimeError, "cannot be compiled: train_loss goes through Cubed, .* leave out compile=True"),
        (
            branches,
            RuntimeError,
            "the (training|tangent) program cannot be compiled: Data-dependent branching.*without branch",
        ),
        (writes, RuntimeError, "train_loss writes in place"),
        (uses_a_stranger, ValueError, "train_loss uses a tensor of shape"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_losses_that_cannot_be(name: str, train_loss: Any, error: Any, text: str):
    with pytest.raises(error, match=f"(?s){text}"):
        slope(train_loss, batches(3), PAIRS[name][0](compile=CHEAP))
    assert HELD.sum() == 0
    for strategy in (PAIRS[name][0](compile=CHEAP), PAIRS[name][0](compile=CHEAP)):  # the error is no matter of once
        with pytest.raises(error, match=f"(?s){text}"):
            slope(train_loss, batches(3), strategy)


@every_strategy
def test_what_compiled_steps_do_not_do(name: str):
    kind = PAIRS[name][0]
    with pytest.raises(ValueError, match="float16 params would vanish; leave it out"):
        hft.hypergradient(
            hft.sgd(),
            loss,
            lambda p: loss(p, batches(1)[0]),
            start(torch.float16),
            batches(2),
            "lr",
            strategy=kind(compile=CHEAP),
        )
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="does not run under autocast"):
        slope(loss, batches(2), kind(compile=CHEAP))
    with pytest.raises(ValueError, match="compile must be .*a backend such as .*did you mean 'inductor'"):
        kind(compile="inducto")
    with pytest.raises(TypeError, match="compile must be True, False or .*, got 1"):
        kind(compile=1)
    if kind is hft.Unroll:
        for keeps in ({"checkpoint": False}, {"checkpoint": "log"}, {"offload": True}):
            with pytest.raises(ValueError, match="keeps points on the device, .* and no graphs"):
                hft.Unroll(compile=True, **keeps)
        with pytest.raises(ValueError, match="memory=300 bytes are too few: .* 2 compiled steps need [0-9]+ for"):
            slope(loss, batches(2), hft.Unroll(compile=CHEAP, checkpoint="auto", memory=300))


def test_a_loss_that_is_another_each_time_is_refused():
    generator = torch.Generator().manual_seed(0)
    calls: list[Tensor] = []

    class Data:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, k: int) -> Tensor:
            calls.append(torch.rand(5, 3, generator=generator, dtype=F64))
            return calls[-1]

    with pytest.raises(RuntimeError, match="when the step is computed again"):
        hft.hypergradient(
            hft.sgd(lr=0.1), loss, lambda p: p["w"].sum(), start(), Data(), "lr", strategy=hft.Unroll(compile=CHEAP)
        )


@every_strategy
def test_without_a_derivative_training_runs_by_the_program_too(name: str, programs: list[str]):
    got, want = (
        hft.train(hft.adam(), loss, start(), batches(10), strategy=s) for s in (PAIRS[name][0](compile=CHEAP), None)
    )
    assert largest_difference(tuple(got), tuple(want)) <= CLOSE
    assert counted(programs) == {"_run": 2}  # of 5 steps each: their points are dropped


def test_scan_is_where_it_was():
    assert scan_module.scan is not None
    files = (Path(hft.__file__).parent).rglob("*.py")
    assert [x.name for x in files if "higher_order" in x.read_text()] == ["scan.py"]


@pytest.mark.parametrize("reason", ["compiler", "torch", "scan"])
@every_strategy
def test_where_nothing_can_be_compiled_it_says_why_and_runs_the_steps(
    name: str, reason: str, monkeypatch: pytest.MonkeyPatch, programs: list[str]
):
    text = {
        "compiler": r"there is no C\+\+ compiler .*CXX",
        "torch": "torch 2.12.1 cannot compile a loop of steps; 2.13 can",
        "scan": "torch .* has no scan where it was in 2.13",
    }[reason]
    if reason == "compiler":
        monkeypatch.setattr(cpp_builder, "get_cpp_compiler", raises(InvalidCxxCompiler))
    elif reason == "torch":
        monkeypatch.setattr(torch, "__version__", "2.12.1")
    else:
        monkeypatch.setattr(scan_module, "scan", None)
    with pytest.warns(UserWarning, match=f"compile=True has no effect: {text}"):
        got = slope(loss, batches(3), PAIRS[name][0](compile=True))
    assert torch.equal(got, slope(loss, batches(3), PAIRS[name][1]))
    assert not programs


def raises(error: type[Exception]) -> Any:
    def call(*given: Any) -> Any:
        raise error

    return call


def test_random_numbers_that_cannot_be_drawn_again_are_refused():
    def counts(p: Any, x: Tensor) -> Tensor:
        return loss(p, torch.poisson(x.abs()))

    with pytest.raises(RuntimeError, match="aten.poisson.* draws random numbers that cannot be drawn again"):
        slope(counts, batches(3), hft.Unroll(compile=True))


@pytest.mark.parametrize("how", ["dropout", "bernoulli", "rand", "randn"])
def test_random_numbers_come_again_and_are_others_in_each_step_and_run(how: str):
    def noisy(p: Any, x: Tensor) -> Tensor:
        w = p["w"]
        noise = {
            "dropout": lambda: F.dropout(torch.ones_like(w)),
            "bernoulli": lambda: torch.bernoulli(torch.full_like(w, 0.4)),
            "rand": lambda: torch.rand(w.shape, dtype=w.dtype),
            "randn": lambda: torch.randn_like(w),
        }[how]()
        return (noise * w).sum()  # one step of SGD leaves w as -lr noise

    def ends(strategy: Any) -> list[Tensor]:
        lr = torch.tensor(1.0, dtype=F64, requires_grad=True)
        zero = {"w": torch.zeros(50, 40, dtype=F64)}
        hparams = {**hft.sgd().hparams, "lr": lr}
        steps = [hft.train(hft.sgd(), noisy, zero, [None] * n, hparams=hparams, strategy=strategy) for n in (2, 3, 3)]
        state = torch.get_rng_state()
        got = torch.autograd.grad(steps[1].params["w"].sum(), lr)[0]
        assert torch.equal(torch.get_rng_state(), state)  # the way back takes what its run has drawn
        torch.testing.assert_close(got, steps[1].params["w"].sum())  # linear in lr: by the numbers of the run
        return [x.params["w"].detach() for x in steps]

    torch.manual_seed(0)
    two, three, again = ends(hft.Unroll(compile=True))
    assert not torch.equal(three, again)  # another run draws others
    mean, std = {"dropout": (1, 1), "bernoulli": (0.4, 0.49), "rand": (0.5, 0.289), "randn": (0, 1)}[how]
    for end, n in ((two, 2), (three, 3), (again, 3)):  # independent steps: a sum of n; 2,000 entries, five sigma
        assert abs(end.mean() + n * mean) <= 5 * std * math.sqrt(n / 2000)
        assert abs(end.std() / (std * math.sqrt(n)) - 1) <= 0.1
    torch.manual_seed(0)
    for x, y in zip((two, three, again), ends(hft.Unroll(compile=True)), strict=True):
        assert torch.equal(x, y)


def test_where_torch_cannot_compile_it_says_so():
    lr = torch.tensor(0.1, dtype=F64, requires_grad=True)
    compiled = hft.Unroll(compile=CHEAP)

    def end(lr: Tensor) -> Tensor:
        return hft.train(hft.sgd(), loss, start(), batches(2), hparams={"lr": lr}, strategy=compiled).params["b"]

    def around(p: Any, x: Any, h: Tensor) -> Tensor:
        return loss(p, x) * end(h).sum()

    hparams = {"loss": torch.tensor(0.1, dtype=F64)}
    for text, action in (
        ("that torch has batched", lambda: torch.autograd.functional.jacobian(end, lr, vectorize=True)),
        (
            "inside a dispatch mode",
            lambda: hft.hypergradient(
                hft.sgd(), around, lambda p: p["b"].sum(), start(), batches(1), "loss", hparams=hparams
            ),
        ),
    ):
        with pytest.raises(RuntimeError, match=f"compile=True: a compiled step cannot run .*{text}"):
            action()
