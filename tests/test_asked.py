"""What docs/reference/asked.md answers by code is tested: by a program of this file that gives what a loop written by
hand gives, or in the files of tests that are named."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hyperopt_ftp as hft
from hyperopt_ftp import tree

F64 = torch.float64
Params = dict[str, Tensor]
Pairs = Iterator[tuple[Any, Any]]  # what the package gives, and what is wanted
Step = Callable[[int, Params, Params], Params]  # number of the update from 0, params, gradients

ROOT = Path(__file__).parent.parent


def weights() -> Params:
    torch.manual_seed(0)
    shapes = {"in": (3, 4), "bias": (4,), "out": (4, 2)}
    return {name: torch.randn(shape, dtype=F64).requires_grad_() for name, shape in shapes.items()}


def batches(steps: int = 4) -> list[Any]:
    torch.manual_seed(1)
    return [(torch.randn(5, 3, dtype=F64), torch.randn(5, 2, dtype=F64)) for _ in range(steps)]


def loss(p: Params, batch: Any) -> Tensor:
    return (torch.tanh(batch[0] @ p["in"] + p["bias"]) @ p["out"] - batch[1]).square().mean()


HELD_OUT = batches(6)[-1]


def loop(p: Params, step: Step) -> Params:
    """By hand, with autograd alone."""
    for k, batch in enumerate(batches()):
        grads = torch.autograd.grad(loss(p, batch), list(p.values()), create_graph=True)
        p = step(k, p, dict(zip(p, grads, strict=True)))
    return p


def ends(got: Params, want: Params, *inputs: Tensor) -> Pairs:
    """The params at the end, and the derivatives of the outer loss there in what went in."""
    yield got, want
    yield tuple(torch.autograd.grad(loss(p, HELD_OUT), inputs, retain_graph=True) for p in (got, want))


def meta_sgd() -> Pairs:
    """A rate for each entry of each weight; and one for each layer and step."""
    p = weights()
    rates = {n: torch.full_like(w, 0.2).requires_grad_() for n, w in p.items()}
    run = hft.train(hft.sgd(), loss, p, batches(), hparams={"lr": rates})
    by_entry = lambda k, p, g: {n: w - rates[n] * g[n] for n, w in p.items()}  # noqa: E731
    yield from ends(run.params, loop(p, by_entry), *rates.values())
    tables = {n: torch.linspace(0.1, 0.3, 4, dtype=F64).requires_grad_() for n in p}
    base = hft.sgd(lr=dict.fromkeys(p, 0.1))
    run = hft.train(hft.per_step(base, {f"lr.{n}": t for n, t in tables.items()}), loss, p, batches())
    by_step = lambda k, p, g: {n: w - tables[n][k] * g[n] for n, w in p.items()}  # noqa: E731
    yield from ends(run.params, loop(p, by_step), *tables.values())


def unused_heads() -> Pairs:
    p, lr = weights(), torch.tensor(0.3, dtype=F64, requires_grad=True)
    more = {**p, "other head": torch.ones(4, 2, dtype=F64, requires_grad=True)}
    run = hft.train(hft.sgd(lr=lr), loss, more, batches())
    yield run.params["other head"], more["other head"]
    end = {n: run.params[n] for n in p}
    yield from ends(end, loop(p, lambda k, p, g: {n: w - lr * g[n] for n, w in p.items()}), lr, *p.values())


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
    want = loop(p, lambda k, p, g: {n: w - move(g[n], net) for n, w in p.items()})
    yield from ends(run.params, want, *net.values(), *p.values())


#: By the first cell of the row: a program of this file, or the file of tests that has one.
ANSWERS: dict[str, Callable[[], Pairs] | str] = {
    "A learning-rate schedule in the inner loop": "tests/test_schedules.py",
    "Hyperparameters as arguments, with any schedule": "tests/optimizers/test_contract.py",
    "Learn the inner learning rate": "tests/optimizers/test_contract.py",
    "Meta-SGD; a rate per layer and step": meta_sgd,
    "Clip inner gradients": "tests/optimizers/test_clipping.py",
    "Accumulate inner gradients": "tests/optimizers/test_accumulation.py",
    "Adam inside; NaN meta-gradients by Adam": "tests/optimizers/test_contract.py",
    "A learned optimizer": learned_optimizer,
    "A loss at every step; early stopping": "tests/hyper/test_steps.py",
    "Batches that depend on the params (on-policy)": "tests/hyper/test_steps.py",
    "State to and from `torch.optim`": "tests/torch_optim/test_torch_state.py",
    "LBFGS": "tests/hyper/test_root.py",
    "Memory grows with each inner step": "tests/hyper/unrolling/test_points.py",
    "Memory of an evaluation": "tests/hyper/test_train.py",
    "First-order MAML and Meta-SGD": "tests/hyper/strategies/test_unroll.py",
    "Backpropagate through the last K steps": "tests/hyper/test_train.py",
    "Momentum as a constant": "tests/hyper/test_train.py",
    "A parameter that is not adapted inside": "tests/hyper/test_train.py",
    "Frozen layers": "tests/optimizers/test_contract.py",
    "Heads that a task does not use": unused_heads,
    "Poisoned data, example weights, pseudo labels": "tests/hyper/test_train.py",
    "Implicit gradients, also their Jacobian and Hessian": "tests/hyper/test_train.py",
    "Unrolled GAN": "tests/hyper/test_field.py",
    "LOLA, competing players": "tests/hyper/test_field.py",
    "A root or a fixed point of one's own": "tests/hyper/test_root.py",
    "RNNs inside": "tests/hyper/test_train.py",
    "Attention inside": "tests/hyper/test_train.py",
    "Pre-trained transformers inside": "tests/integrations/test_large.py",
    "Adapters inside": "tests/hyper/test_train.py",
    "BatchNorm without running statistics, or frozen": "tests/hyper/test_of_module.py",
    "BatchNorm's statistics after adapting, or of each step": "tests/hyper/test_of_module.py",
    "The adapted module as an object; tied weights": "tests/hyper/test_of_module.py",
    "Complex weights; sparse gradients": "tests/hyper/guards/test_call_arguments.py",
    "A compiled model inside": "tests/hyper/test_train.py",
    "Activation checkpointing inside": "tests/hyper/test_train.py",
    "Mixed precision inside": "tests/hyper/test_train.py",
    "Optimizers as functions, a loop of one's own": "tests/optimizers/test_contract.py",
    "Tasks or an ensemble at once by `vmap`, with dropout": "tests/hyper/core/test_replay.py",
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
            # A thousand roundings of 1e-16 of values up to 10.
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
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
