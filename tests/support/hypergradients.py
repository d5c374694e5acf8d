"""Hypergradients of a small problem: the strategies, calls of each entry point, and central differences."""

from __future__ import annotations

import math

import pytest
import torch

import hyperopt_ftp as hft
from hyperopt_ftp import tree

from .problems import batches, central_differences, loss, start

F64 = torch.float64
DATA, HELD_OUT = batches(4), batches(1)[0] + 0.3
SGD = hft.sgd(lr=0.2, momentum=0.5)
#: Exact ones: each is held to central differences.
EXACT = {
    "unroll": hft.Unroll(),
    "unroll-sqrt-offload": hft.Unroll(checkpoint="sqrt", offload=True),
    "unroll-every-step": hft.Unroll(checkpoint=1),
    "forward": hft.Forward(),
    "forward-by-one": hft.Forward(chunk=1),
}
OTHERS = {"truncated": hft.Unroll(truncate=2), "implicit": hft.Implicit(iterations=1, tolerance=math.inf)}
#: Those whose node hides the graph of a training from autograd.
HIDING = {name: x for name, x in (EXACT | OTHERS).items() if name not in ("unroll", "truncated")}
#: One that keeps graphs, one whose node makes steps again, and tangents: guards tell no more of them apart.
every_way = pytest.mark.parametrize("strategy", [hft.Unroll(), hft.Unroll(checkpoint=1), hft.Forward()], ids=repr)
every_exact = pytest.mark.parametrize("strategy", EXACT.values(), ids=EXACT)
#: Derivatives by torch.func, of a function of one tensor or tree; forward mode along ones.
TRANSFORMS = {
    "grad": torch.func.grad,
    "jvp": lambda f: lambda x: torch.func.jvp(f, (x,), (tree.map_tree(torch.ones_like, x),))[1],
}
every_transform = pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
every_strategy = pytest.mark.parametrize("strategy", [*EXACT.values(), *OTHERS.values()], ids=[*EXACT, *OTHERS])
#: The training has not converged here, and Implicit says so; or by definition does not depend on lr.
not_converged = pytest.mark.filterwarnings("ignore:Implicit. training:UserWarning", "ignore:the hyperg:UserWarning")


def f64(x):
    """A float64 tensor of the numbers."""
    return torch.tensor(x, dtype=F64)


def outer(params):
    """The loss of the small problem on data that no step sees."""
    return loss(params, HELD_OUT)


def call(train_loss=loss, strategy=None, over="lr", hparams=None, outer_loss=outer, params=None, data=DATA, opt=SGD):
    """Value, hypergradients by name, and where training ends."""
    given = start() if params is None else params
    return hft.hypergradient(
        opt, train_loss, outer_loss, given, data, over, {**opt.hparams, **(hparams or {})}, strategy=strategy
    )


def drawn(count, *shape, generator=None):
    """The directions that ZeroOrder draws for one tensor, with such a generator."""
    seed = int(torch.randint(2**62, (), generator=generator))
    return [torch.randn(shape, generator=torch.Generator().manual_seed(seed + i), dtype=F64) for i in range(count)]


def slope(train_loss=loss, strategy=None, **options):
    """The hypergradient of lr."""
    return call(train_loss, strategy, **options)[1]["lr"]


def differences(train_loss=loss, seed=lambda: None, opt=SGD, **options):
    """d outer / d lr, by central differences of training itself."""

    def at(lr):
        seed()
        return call(train_loss, opt=opt, hparams={"lr": lr}, strategy=hft.Unroll(checkpoint=False), **options)[0]

    return central_differences(at, opt.hparams["lr"])[0].item()


def module_loss(net):
    """A loss of the params of a module, on one batch."""
    return lambda p, x: torch.func.functional_call(net, p, (x,)).sub(1).square().mean()


def rounds(over="lr", by=None, opt=SGD, train_batches=DATA, outer_batches=(HELD_OUT,), **options):
    """The records of three rounds of two steps."""
    given = {"train_loss": loss, "outer_loss": loss, "params": start(), "inner_steps": 2, "outer_steps": 3} | options
    return list(
        hft.bilevel(
            opt, by or hft.sgd(lr=0.1), over, given.pop("train_loss"), given.pop("outer_loss"), given.pop("params"),
            train_batches, outer_batches, **given,
        )
    )  # fmt: skip


def first_state(**options):
    """The state after one round: what a run goes on from."""
    return rounds(outer_steps=1, **options)[0].state


def own(value):
    """The optimizer's hparams beside those of the loss."""
    return {**SGD.hparams, "loss": value}


def hidden(p, x):
    return x @ p["w"] + p["b"]
