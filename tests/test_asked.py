"""What docs/reference/asked.md answers by code: each program gives what a loop written by hand gives."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

import hyperopt_ftp as hft
from hyperopt_ftp import tree

F64 = torch.float64
Params = dict[str, Tensor]
Pairs = Iterator[tuple[Any, Any]]  # what the package gives, and what is wanted
Step = Callable[[int, Params, Params], Params]  # number of the update from 0, params, gradients

ROOT = Path(__file__).parent.parent


def number(x: float) -> Tensor:
    return torch.tensor(x, dtype=F64, requires_grad=True)


def weights() -> Params:
    torch.manual_seed(0)
    shapes = {"in": (3, 4), "bias": (4,), "out": (4, 2)}
    return {name: torch.randn(shape, dtype=F64).requires_grad_() for name, shape in shapes.items()}


def batches(steps: int = 4) -> list[Any]:
    torch.manual_seed(1)
    return [(torch.randn(5, 3, dtype=F64), torch.randn(5, 2, dtype=F64)) for _ in range(steps)]


def predict(p: Params, x: Tensor) -> Tensor:
    return torch.tanh(x @ p["in"] + p["bias"]) @ p["out"]


def loss(p: Params, batch: Any) -> Tensor:
    return (predict(p, batch[0]) - batch[1]).square().mean()


HELD_OUT = batches(6)[-1]


def sgd(lr: Any) -> Step:
    return lambda k, p, g: {name: w - lr * g[name] for name, w in p.items()}


def loop(loss: Callable[..., Tensor], p: Params, data: list[Any], step: Step, first_order: bool = False) -> Params:
    """By hand, with autograd alone."""
    for k, batch in enumerate(data):
        grads = torch.autograd.grad(loss(p, batch), list(p.values()), create_graph=not first_order)
        p = step(k, p, dict(zip(p, grads, strict=True)))
    return p


def ends(
    got: Params, want: Params, *inputs: Tensor, outer: Callable[..., Tensor] = loss, held: Any = HELD_OUT
) -> Pairs:
    """The params at the end, and the derivatives of the outer loss there in what went in."""
    yield got, want
    yield tuple(torch.autograd.grad(outer(p, held), inputs, retain_graph=True) for p in (got, want))


# -- steps and rates ---------------------------------------------------------------------------------------------------


def schedule() -> Pairs:
    p, lr = weights(), number(0.3)
    opt = hft.scheduled(hft.sgd(lr=lr), lr=hft.schedules.piecewise(at=(2, 3), factors=(0.1, 0.01)))
    run = hft.train(opt, loss, p, batches())
    want = loop(loss, p, batches(), lambda k, p, g: sgd(lr * (1, 1, 0.1, 0.01)[k])(k, p, g))
    yield from ends(run.params, want, lr, *p.values())


def any_schedule() -> Pairs:
    p, lr, decay = weights(), number(0.3), number(0.7)
    opt = hft.scheduled(hft.sgd(), lr=lambda t: 0.5**t)
    run = hft.train(opt, loss, p, batches(), hparams={"lr": lr, "momentum": decay})
    buffers = {n: torch.zeros_like(w) for n, w in p.items()}

    def step(k: int, p: Params, g: Params) -> Params:
        nonlocal buffers
        buffers = {n: decay * b + g[n] for n, b in buffers.items()}
        return sgd(lr * 0.5**k)(k, p, buffers)

    yield from ends(run.params, loop(loss, p, batches(), step), lr, decay)


def learned_rate() -> Pairs:
    p, lr = weights(), number(0.3)
    run = hft.train(hft.sgd(lr=lr), loss, p, batches())
    yield from ends(run.params, loop(loss, p, batches(), sgd(lr)), lr)


def meta_sgd() -> Pairs:
    """A rate for each entry of each weight; and one for each layer and step."""
    p = weights()
    rates = {n: torch.full_like(w, 0.2).requires_grad_() for n, w in p.items()}
    run = hft.train(hft.sgd(), loss, p, batches(), hparams={"lr": rates})
    by_entry = lambda k, p, g: {n: w - rates[n] * g[n] for n, w in p.items()}  # noqa: E731
    yield from ends(run.params, loop(loss, p, batches(), by_entry), *rates.values())
    tables = {n: torch.linspace(0.1, 0.3, 4, dtype=F64).requires_grad_() for n in p}
    base = hft.sgd(lr=dict.fromkeys(p, 0.1))
    run = hft.train(hft.per_step(base, {f"lr.{n}": t for n, t in tables.items()}), loss, p, batches())
    by_step = lambda k, p, g: {n: w - tables[n][k] * g[n] for n, w in p.items()}  # noqa: E731
    yield from ends(run.params, loop(loss, p, batches(), by_step), *tables.values())


def clipping() -> Pairs:
    p, lr = weights(), number(0.3)
    run = hft.train(hft.clipped(hft.sgd(lr=lr), 0.1), loss, p, batches())

    def step(k: int, p: Params, g: Params) -> Params:
        norm = torch.stack([x.norm() for x in g.values()]).norm()
        return sgd(lr)(k, p, {n: x * (0.1 / (norm + 1e-6)).clamp(max=1) for n, x in g.items()})

    yield from ends(run.params, loop(loss, p, batches(), step), lr, *p.values())


def accumulation() -> Pairs:
    p, lr, data = weights(), number(0.3), batches()
    run = hft.train(hft.accumulated(hft.sgd(lr=lr), every=2), loss, p, data)
    pairs = list(zip(data[::2], data[1::2], strict=True))
    mean = lambda p, two: (loss(p, two[0]) + loss(p, two[1])) / 2  # noqa: E731
    yield from ends(run.params, loop(mean, p, pairs, sgd(lr)), lr, *p.values())


def adam_with_dead_units() -> Pairs:
    """Columns of zeros reach nothing: derivatives are those of the net without them, and finite."""
    p, lr = weights(), number(0.1)
    with torch.no_grad():
        p["out"][2:] = 0.0
    mask = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=F64)
    dead = lambda p, batch: F.mse_loss((torch.tanh(batch[0] @ p["in"] + p["bias"]) * mask) @ p["out"], batch[1])  # noqa: E731
    run = hft.train(hft.adam(lr=lr), dead, p, batches())
    alive = {"in": p["in"][:, :2], "bias": p["bias"][:2], "out": p["out"][:2]}
    first, second = ({n: torch.zeros_like(w) for n, w in alive.items()} for _ in range(2))

    def step(k: int, p: Params, g: Params) -> Params:
        nonlocal first, second
        first = {n: 0.9 * m + 0.1 * g[n] for n, m in first.items()}
        second = {n: 0.999 * v + 0.001 * g[n] ** 2 for n, v in second.items()}
        m, v = ({n: x / (1 - b ** (k + 1)) for n, x in s.items()} for b, s in ((0.9, first), (0.999, second)))
        return {n: w - lr * m[n] / (v[n].sqrt() + 1e-8) for n, w in p.items()}

    want = loop(loss, alive, batches(), step)
    got = torch.autograd.grad(dead(run.params, HELD_OUT), (lr, *p.values()))
    living = torch.autograd.grad(loss(want, HELD_OUT), (lr, *p.values()))
    yield got, living


# -- what is differentiated, and how much of it ------------------------------------------------------------------------


def memory() -> Pairs:
    p, lr = weights(), number(0.3)
    want = loop(loss, p, batches(), sgd(lr))
    for strategy in (hft.Unroll(checkpoint="sqrt"), hft.Unroll(memory=2**20), hft.Forward()):
        run = hft.train(hft.sgd(lr=lr), loss, p, batches(), strategy=strategy)
        yield from ends(run.params, want, lr, *p.values())


def evaluation() -> Pairs:
    p, lr = weights(), number(0.3)
    with torch.no_grad():
        run = hft.train(hft.sgd(lr=lr), loss, p, batches())
    assert not any(w.requires_grad for w in run.params.values())
    yield run.params, {n: w.detach() for n, w in loop(loss, p, batches(), sgd(lr)).items()}


def first_order() -> Pairs:
    p, data = weights(), batches()
    rates = {n: torch.full_like(w, 0.2).requires_grad_() for n, w in p.items()}
    run = hft.train(hft.sgd(), loss, p, data, hparams={"lr": rates}, strategy=hft.Unroll(first_order=True))
    step = lambda k, p, g: {n: w - rates[n] * g[n] for n, w in p.items()}  # noqa: E731
    yield from ends(run.params, loop(loss, p, data, step, first_order=True), *p.values(), *rates.values())


def truncated() -> Pairs:
    p, lr, data = weights(), number(0.3), batches()
    fixed = {n: w.detach() for n, w in p.items()}  # truncated training has no derivative in its start
    run = hft.train(hft.sgd(lr=lr), loss, fixed, data, strategy=hft.Unroll(truncate=2))
    begin = {n: w.detach().requires_grad_() for n, w in loop(loss, p, data[:2], sgd(lr)).items()}
    yield from ends(run.params, loop(loss, begin, data[2:], sgd(lr)), lr)


def constant_momentum() -> Pairs:
    p, lr, data = weights(), number(0.3), batches()
    opt = hft.sgd(lr=lr, momentum=0.9)
    with torch.no_grad():
        state = hft.train(opt, loss, p, data[:3]).state
    run = hft.train(opt, loss, p, data[3:], state=state)
    step = lambda k, p, g: {n: w - lr * (0.9 * state.momentum_buffer[n] + g[n]) for n, w in p.items()}  # noqa: E731
    yield from ends(run.params, loop(loss, p, data[3:], step), lr, *p.values())


def not_adapted() -> Pairs:
    """The second layer is not trained inside, but the outer derivative reaches it; another way is to close over it."""
    p, lr = weights(), number(0.3)
    inside = {n: p[n] for n in ("in", "bias")}
    split = lambda q, batch, h: loss({**q, **h}, batch)  # noqa: E731
    run = hft.train(hft.sgd(lr=lr), split, inside, batches(), hparams={"loss": {"out": p["out"]}})
    by_hand = lambda q, batch: loss({**q, "out": p["out"]}, batch)  # noqa: E731
    yield from ends(run.params, loop(by_hand, inside, batches(), sgd(lr)), lr, *p.values(), outer=by_hand)
    closed = hft.train(hft.sgd(lr=lr), by_hand, inside, batches())
    yield from ends(closed.params, run.params, lr, *p.values(), outer=by_hand)


def frozen_layers() -> Pairs:
    p, lr = weights(), number(0.3)
    opt = hft.partition({"moves": hft.sgd(lr=lr), "stays": hft.frozen()}, {"in": "stays", "*": "moves"})
    run = hft.train(opt, loss, p, batches())
    step = lambda k, p, g: {n: w if n == "in" else w - lr * g[n] for n, w in p.items()}  # noqa: E731
    yield from ends(run.params, loop(loss, p, batches(), step), lr, *p.values())


def unused_heads() -> Pairs:
    p, lr = weights(), number(0.3)
    more = {**p, "other head": torch.ones(4, 2, dtype=F64, requires_grad=True)}
    run = hft.train(hft.sgd(lr=lr), loss, more, batches())
    yield run.params["other head"], more["other head"]
    end = {n: run.params[n] for n in p}
    yield from ends(end, loop(loss, p, batches(), sgd(lr)), lr, *p.values())


def data_and_labels() -> Pairs:
    """Derivatives in the examples, in their weights, and in labels."""
    p, lr = weights(), number(0.3)
    data = [tuple(x.requires_grad_() for x in batch) for batch in batches()]
    run = hft.train(hft.sgd(lr=lr), loss, p, data)
    yield from ends(run.params, loop(loss, p, data, sgd(lr)), *[x for batch in data for x in batch])
    share = torch.full((5,), 0.2, dtype=F64, requires_grad=True)
    weighted = lambda p, batch, h: h["share"] @ (predict(p, batch[0]) - batch[1]).square().sum(1)  # noqa: E731
    run = hft.train(hft.sgd(lr=lr), weighted, p, batches(), hparams={"loss": {"share": share}})
    want = loop(lambda p, batch: weighted(p, batch, {"share": share}), p, batches(), sgd(lr))
    yield from ends(run.params, want, share)


# -- networks ----------------------------------------------------------------------------------------------------------


def of_module(net: nn.Module, shape: tuple[int, ...], through: Callable[..., Any] = lambda y: y) -> Pairs:
    """A module in a loss, trained for three steps."""
    p, lr = dict(net.named_parameters()), number(0.2)
    torch.manual_seed(2)
    data = list(torch.randn(4, *shape, dtype=F64))
    inner = lambda p, x: through(functional_call(net, p, (x,))).square().mean()  # noqa: E731
    run = hft.train(hft.sgd(lr=lr), inner, p, data[:3])
    with sdpa_kernel(SDPBackend.MATH):
        want = loop(inner, p, data[:3], sgd(lr))
        yield from ends(run.params, want, lr, outer=inner, held=data[3])


def recurrent() -> Pairs:
    torch.manual_seed(0)
    yield from of_module(nn.LSTM(3, 4, batch_first=True).double(), (2, 5, 3), lambda y: y[0])


def attention() -> Pairs:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True, norm_first=True).double()
    yield from of_module(layer, (2, 5, 4))


def batch_norm() -> Pairs:
    """Without running statistics; and frozen, also under the implicit function theorem."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double()
    yield from of_module(copy.deepcopy(net).eval(), (6, 3))
    torch.func.replace_all_batch_norm_modules_(net)
    yield from of_module(net, (6, 3))
    norm, x, y, l2 = nn.BatchNorm1d(2).double(), torch.randn(9, 3, dtype=F64), torch.randn(9, 2, dtype=F64), number(0.5)
    norm(3 * y)  # other statistics than those of a new one
    norm.requires_grad_(False).eval()
    ridge = lambda p, _, h: (norm(x @ p["w"]) - y).square().mean() + h["l2"] * p["w"].square().mean()  # noqa: E731
    start, l2_alone = {"w": torch.zeros(3, 2, dtype=F64, requires_grad=True)}, {"loss": {"l2": l2}}
    still = {n: w.detach() for n, w in start.items()}
    run = hft.train(hft.sgd(lr=0.5), ridge, still, [None] * 400, hparams=l2_alone, strategy=hft.Implicit("cg"))
    want = loop(lambda p, b: ridge(p, b, {"l2": l2}), start, [None] * 400, sgd(0.5))
    yield from ends(run.params, want, l2, outer=lambda p, _: p["w"].sum())


def compiled() -> Pairs:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    p, lr, data = dict(net.named_parameters()), number(0.2), torch.randn(3, 6, 3, dtype=F64)
    fast = torch.compile(net, backend="aot_eager")
    inner = lambda net: lambda p, x: functional_call(net, p, (x,)).square().mean()  # noqa: E731
    own = {f"_orig_mod.{n}": w for n, w in p.items()}
    run = hft.train(hft.sgd(lr=lr), inner(fast), own, list(data[:2]))
    got = {n.removeprefix("_orig_mod."): w for n, w in run.params.items()}
    yield from ends(got, loop(inner(net), p, list(data[:2]), sgd(lr)), lr, outer=inner(net), held=data[2])


def adapters() -> Pairs:
    """Of a frozen layer the adapter alone is trained, inside and outside."""
    torch.manual_seed(0)
    body = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True).double().requires_grad_(False)
    p, lr = {n: torch.randn(s, dtype=F64).requires_grad_() for n, s in (("A", (2, 4)), ("B", (4, 2)))}, number(0.2)
    data = list(torch.randn(3, 2, 5, 4, dtype=F64))
    inner = lambda p, x: (body(x) + x @ p["A"].T @ p["B"].T).square().mean()  # noqa: E731
    run = hft.train(hft.sgd(lr=lr), inner, p, data[:2])
    yield from ends(run.params, loop(inner, p, data[:2], sgd(lr)), lr, *p.values(), outer=inner, held=data[2])


def checkpointed() -> Pairs:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    p, lr, data = dict(net.named_parameters()), number(0.2), list(torch.randn(3, 6, 3, dtype=F64))
    call = lambda p, x: functional_call(net, p, (x,))  # noqa: E731
    inner = lambda p, x: checkpoint(call, p, x, use_reentrant=False).square().mean()  # noqa: E731
    plain = lambda p, x: call(p, x).square().mean()  # noqa: E731
    run = hft.train(hft.sgd(lr=lr), inner, p, data[:2])
    yield from ends(run.params, loop(plain, p, data[:2], sgd(lr)), lr, *p.values(), outer=plain, held=data[2])


def mixed_precision() -> Pairs:
    p, lr = (
        {n: w.detach().float().requires_grad_() for n, w in weights().items()},
        torch.tensor(0.3, requires_grad=True),
    )
    data = [(x.float(), y.float()) for x, y in batches()]

    def inner(p: Params, batch: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            out = predict(p, batch[0])
        return F.mse_loss(out.float(), batch[1])

    run = hft.train(hft.sgd(lr=lr), inner, p, data)
    held = tuple(x.float() for x in HELD_OUT)
    yield from ends(run.params, loop(inner, p, data, sgd(lr)), lr, outer=inner, held=held)


# -- loops of one's own, tasks, other derivatives ----------------------------------------------------------------------


def own_loop() -> Pairs:
    p, lr = weights(), number(0.3)
    opt, q = hft.sgd(), p
    state = opt.init(q)
    for batch in batches():
        grads = dict(zip(q, torch.autograd.grad(loss(q, batch), list(q.values()), create_graph=True), strict=True))
        q, state = opt.update(grads, state, q, opt.hparams | {"lr": lr})
    yield from ends(q, loop(loss, p, batches(), sgd(lr)), lr, *p.values())


def tasks() -> Pairs:
    """MAML over tasks by vmap; an ensemble; dropout, another mask for each task."""
    p, data = {n: w.detach() for n, w in weights().items()}, batches(3)
    stacked = tuple(torch.stack(x) for x in zip(*data, strict=True))

    def after(p: Params, *batch: Tensor) -> Tensor:
        return loss(hft.train(hft.sgd(lr=0.3), loss, p, [batch]).params, batch)

    mean = lambda p: torch.func.vmap(lambda *b: after(p, *b))(*stacked).mean()  # noqa: E731
    own = {n: w.requires_grad_() for n, w in weights().items()}
    each = torch.stack([loss(loop(loss, own, [batch], sgd(0.3)), batch) for batch in data]).mean()
    yield torch.func.grad(mean)(p), dict(zip(own, torch.autograd.grad(each, list(own.values())), strict=True))
    many = {n: torch.stack([w, 0.5 * w]) for n, w in p.items()}
    together = torch.func.vmap(lambda p: hft.train(hft.sgd(lr=0.3), loss, p, data).params)(many)
    for i in range(2):
        one = {n: w[i].requires_grad_() for n, w in many.items()}
        yield (
            {n: w[i] for n, w in together.items()},
            {n: w.detach() for n, w in loop(loss, one, data, sgd(0.3)).items()},
        )
    noisy = lambda p, batch: F.dropout(predict(p, batch[0])).square().mean()  # noqa: E731
    trained = lambda p: hft.train(hft.sgd(lr=0.3), noisy, p, [data[0]] * 2).params["out"]  # noqa: E731
    twice = torch.func.vmap(trained, randomness="different")({n: torch.stack([w, w]) for n, w in p.items()})
    assert not torch.equal(twice[0], twice[1])


def implicit() -> Pairs:
    """At the minimum of a quadratic with weight decay: exact values, the Jacobian, and a second derivative."""
    torch.manual_seed(0)
    x, y, l2 = torch.randn(8, 3, dtype=F64), torch.randn(8, dtype=F64), number(0.5)
    ridge = lambda w, _, h: (x @ w - y).square().sum() / 2 + h["l2"] * w.square().sum() / 2  # noqa: E731

    def solution(l2: Tensor) -> Tensor:
        opt, how = hft.sgd(lr=0.05), hft.Implicit("cg")
        return hft.train(
            opt, ridge, torch.zeros(3, dtype=F64), [None] * 800, hparams={"loss": {"l2": l2}}, strategy=how
        ).params

    exact = lambda l2: torch.linalg.solve(x.T @ x + l2 * torch.eye(3, dtype=F64), x.T @ y)  # noqa: E731
    for f in (lambda g: g, torch.func.jacrev, lambda g: torch.func.jacrev(torch.func.jacrev(g))):
        yield f(solution)(l2.detach()), f(exact)(l2.detach())


def unrolled_gan() -> Pairs:
    """The loss of a generator after steps of a discriminator that sees what it makes: the derivative through them."""
    torch.manual_seed(0)
    g, lr = torch.randn(2, 3, dtype=F64).requires_grad_(), number(0.2)
    d = {"w": torch.randn(3, dtype=F64), "b": torch.zeros((), dtype=F64)}
    d = {n: w.requires_grad_() for n, w in d.items()}
    noise, real = torch.randn(4, 2, dtype=F64), torch.randn(4, 3, dtype=F64)
    score = lambda d, x: x @ d["w"] + d["b"]  # noqa: E731
    d_loss = lambda d, z, h: (F.softplus(-score(d, real)) + F.softplus(score(d, torch.tanh(z @ h["g"])))).mean()  # noqa: E731
    g_loss = lambda d, z: F.softplus(-score(d, torch.tanh(z @ g))).mean()  # noqa: E731
    run = hft.train(hft.sgd(lr=lr), d_loss, d, [noise] * 3, hparams={"loss": {"g": g}})
    want = loop(lambda d, z: d_loss(d, z, {"g": g}), d, [noise] * 3, sgd(lr))
    yield from ends(run.params, want, g, lr, outer=g_loss, held=noise)


def learned_optimizer() -> Pairs:
    """A network that makes the update from the gradient; its weights are hparams."""
    torch.manual_seed(0)
    net = {"in": torch.randn(1, 4, dtype=F64), "out": torch.randn(4, 1, dtype=F64)}
    net, p = {n: w.requires_grad_() for n, w in net.items()}, weights()
    move = lambda g, net: 0.1 * (torch.tanh(g[..., None] @ net["in"]) @ net["out"])[..., 0]  # noqa: E731

    def update(grads: Any, state: Any, params: Any, hparams: Any = None) -> Any:
        return tree.map_tree(lambda w, g: w - move(g, hparams["net"]), params, grads), state

    opt = hft.Optimizer(lambda params, hparams=None: (), update, {"net": net})
    run = hft.train(opt, loss, p, batches())
    want = loop(loss, p, batches(), lambda k, p, g: {n: w - move(g[n], net) for n, w in p.items()})
    yield from ends(run.params, want, *net.values(), *p.values())


#: By the first cell of the row: a program of this file, or the file of tests that has one.
ANSWERS: dict[str, Callable[[], Pairs] | str] = {
    "A learning-rate schedule in the inner loop": schedule,
    "Hyperparameters as arguments, with any schedule": any_schedule,
    "Learn the inner learning rate": learned_rate,
    "Meta-SGD; a rate per layer and step": meta_sgd,
    "Clip inner gradients": clipping,
    "Accumulate inner gradients": accumulation,
    "Adam inside; NaN meta-gradients by Adam": adam_with_dead_units,
    "A learned optimizer": learned_optimizer,
    "A loss at every step; early stopping": "tests/hyper/test_steps.py",
    "Batches that depend on the params (on-policy)": "tests/hyper/test_steps.py",
    "State to and from `torch.optim`": "tests/torch_optim/test_torch_state.py",
    "LBFGS": "tests/hyper/test_root.py",
    "Memory grows with each inner step": memory,
    "Memory of an evaluation": evaluation,
    "First-order MAML and Meta-SGD": first_order,
    "Backpropagate through the last K steps": truncated,
    "Momentum as a constant": constant_momentum,
    "A parameter that is not adapted inside": not_adapted,
    "Frozen layers": frozen_layers,
    "Heads that a task does not use": unused_heads,
    "Poisoned data, example weights, pseudo labels": data_and_labels,
    "Implicit gradients, also their Jacobian and Hessian": implicit,
    "Unrolled GAN": unrolled_gan,
    "LOLA, competing players": "tests/hyper/test_field.py",
    "A root or a fixed point of one's own": "tests/hyper/test_root.py",
    "RNNs inside": recurrent,
    "Attention inside": attention,
    "Pre-trained transformers inside": "tests/integrations/test_large.py",
    "Adapters inside": adapters,
    "BatchNorm without running statistics, or frozen": batch_norm,
    "BatchNorm's statistics after adapting, or of each step": "tests/hyper/test_of_module.py",
    "The adapted module as an object; tied weights": "tests/hyper/test_of_module.py",
    "Complex weights; sparse gradients": "tests/hyper/guards/test_call_arguments.py",
    "A compiled model inside": compiled,
    "Activation checkpointing inside": checkpointed,
    "Mixed precision inside": mixed_precision,
    "Optimizers as functions, a loop of one's own": own_loop,
    "Tasks or an ensemble at once by `vmap`, with dropout": tasks,
    "Many processes": "tests/distributed/test_checks.py",
    "Resume a meta-training": "tests/hyper/loops/test_bilevel.py",
    "Adapt in Lightning's validation": "tests/hyper/guards/test_loss.py",
    "L2-SP, rates per layer in a Trainer": "tests/torch_optim/test_family.py",
    "WiSE-FT of LoRA": "tests/mixing/test_lora.py",
    "WiSE-FT with a new head": "tests/mixing/test_mixing.py",
    "Fine-tune LoRA without forgetting": "tests/integrations/test_peft.py",
    "Which weights of a schedule-free optimizer": "tests/optimizers/test_schedule_free.py",
}
PROGRAMS = {name: answer for name, answer in ANSWERS.items() if not isinstance(answer, str)}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_what_was_asked_elsewhere_is_what_a_loop_by_hand_gives(program: Callable[[], Pairs]):
    checked = 0
    for got, want in program():
        for a, b in zip(tree.leaves(got), tree.leaves(want), strict=True):
            assert a.isfinite().all()
            # A thousand roundings of 1e-16 of values up to 10, or a hundred of 6e-8 in float32.
            close = 1e-12 if a.dtype == F64 else 1e-5
            torch.testing.assert_close(a, b, rtol=10 * close, atol=close)
            checked += 1
    assert checked


def test_each_row_of_the_page_has_its_test_and_its_threads():
    page = (ROOT / "docs" / "reference" / "asked.md").read_text()
    rows = [line.strip("|").split(" | ") for line in page.splitlines() if re.match(r"\| (?!asked)", line)]
    assert [row[0].strip() for row in rows] == list(ANSWERS)
    assert all(re.search(r"https://github\.com/[\w.-]+/[\w.-]+/(issues|pull)/\d+", row[1]) for row in rows)
    assert all((ROOT / path).exists() for path in ANSWERS.values() if isinstance(path, str))
    missing = [name for name in re.findall(r"\bhft\.(\w+)", page) if not hasattr(hft, name)]
    assert missing == []
