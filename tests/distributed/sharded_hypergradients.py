"""Checks of what is there for sharded params alone: placements, updates on shards, FSDP2, and what is refused."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import hyperopt_ftp as hft
from hyperopt_ftp import dtensors, tree

from ..support.cases import CASES
from . import checks
from .hypergradients import (
    ADAM,
    Batch,
    Jolt,
    apart,
    assert_the_same_everywhere,
    assert_within,
    batch,
    drawn,
    held_out,
    hypergradient,
    params,
    plain,
    shard,
    sharded,
    with_rounding,
)
from .launch import on


def assert_equal(found: Any, expected: Any, what: object) -> None:
    """Also on all processes, to the last bit."""
    off = apart(found, expected)
    assert off <= 1e-12, f"{what}: off by {off}"
    assert_the_same_everywhere(found)


@on("2 processes")
def placements(folder: Path) -> None:
    over = ("lr", "params")
    expected = hypergradient(hft.Unroll(), True, over=over)
    for placement in (Shard(-1), Replicate()):
        place = partial(sharded, placement=placement)
        found = hypergradient(hft.Unroll(), False, over=over, place=place)
        assert_equal(found, expected, placement)
        for x, y in zip(tree.leaves(found[2][0]), tree.leaves(place(params())), strict=True):
            assert x.placements == y.placements
    opt, data = hft.adam(lr=0.05, eps=1e-3), [batch(t) for t in range(3)]
    alone, whole = (  # each process computes all of it
        hft.hypergradient(opt, held_out, lambda p: held_out(p, data[0]), place(params()), data, over)
        for place in (sharded, plain)
    )
    assert_equal(alone, whole, "without data_parallel")
    warnings.filterwarnings("ignore", "ZeroOrder trains its samples one after the other")
    drawing = [hft.ZeroOrder(samples=2, sigma=0.1, generator=torch.Generator().manual_seed(0)) for _ in range(2)]
    few, same = (
        hypergradient(strategy, False, over=over, place=place)
        for strategy, place in zip(drawing, (sharded, plain), strict=True)
    )
    assert_equal(few, same, "ZeroOrder")


@on("2 processes")
def implicit(folder: Path) -> None:
    """Also where training has not converged, so that nothing is checked of the state that is held fixed."""

    def bowl(p: Any, target: Tensor, h: Any) -> Tensor:
        return ((p["w"] - target) ** 2).sum() / 2 + h["l2"] * (p["w"] ** 2).sum()

    at, loss_hparams = drawn(3, 5, 2), {"l2": torch.tensor(0.1, dtype=torch.float64)}
    momentum = hft.sgd(lr=0.3, momentum=0.5)
    converged, same = (
        hft.hypergradient(
            momentum, hft.data_parallel(bowl, size=lambda x: 1), lambda p: p["w"].sum(), place({"w": at}), [at] * 100,
            "loss", hparams={"loss": loss_hparams}, strategy=hft.Implicit(),
        )
        for place in (sharded, plain)
    )  # fmt: skip
    assert_equal(converged, same, "implicit, converged")
    warnings.filterwarnings("ignore", "Implicit: training has not converged")
    options: Any = {"over": ("lr", "loss"), "opt": hft.adam(lr=0.5, eps=1e-3)}
    strategy = hft.Implicit(tolerance=2.0)
    expected = hypergradient(strategy, True, **options)
    assert_equal(hypergradient(strategy, False, place=sharded, **options), expected, "implicit")


#: Those with operations that others do not have.
KINDS = ("sgd", "adamw", "adafactor", "nadam", "muon", "ftp", "projected-l2", "digrap", "clipped", "noisy")


@on("2 processes")
def optimizers(folder: Path) -> None:
    """Those of the table make the same updates; some are differentiated in all their hparams. Anchors are whole."""
    warnings.filterwarnings("ignore", ".*is exactly 0")
    start = {"w": drawn(1, 3, 4), "b": drawn(2, 4)}
    grads = [{"w": drawn(10 + t, 3, 4), "b": drawn(20 + t, 4)} for t in range(3)]

    def to_a_point(p: Any, x: Any) -> Tensor:
        return sum(((p[n] - x[n]) ** 4).sum() for n in p) / 10

    whole = hft.data_parallel(to_a_point, size=lambda x: 1)
    for case in CASES:
        opt, ends = case.build(), []
        for place in (sharded, plain):
            p = place(start)
            state = opt.init(p)
            for g in place(grads):
                p, state = opt.update(g, state, p)
            ends.append((p, state))
        assert_equal(*ends, case.name)
        if case.name in KINDS:

            def hypergradient(loss: Any, place: Any, jolt: Jolt = lambda x: x, opt: Any = opt) -> Any:
                p, (first, *more), hparams = tree.map_tree(jolt, (start, grads, opt.hparams))
                return hft.hypergradient(opt, loss, lambda p: loss(p, first), place(p), [first, *more], hparams=hparams)

            found = hypergradient(whole, sharded)
            assert_within(found, *with_rounding(partial(hypergradient, to_a_point, plain), torch.float64, draws=4))
            assert_the_same_everywhere(found)
            for x in tree.leaves(found[2]):
                assert not isinstance(x, DTensor) or not any(p.is_partial() for p in x.placements), case.name


@on("2 processes")
def fully_sharded(folder: Path) -> None:
    """FSDP2 cuts the params; its modules run on weights of their own."""
    start, module = {n: p.detach() for n, p in checks.net().named_parameters()}, fully_shard(checks.net())
    data = list(checks.batches(range(3)))
    mine = tree.map_tree(lambda x: x[dist.get_rank() :: dist.get_world_size()], data)

    def by(net: Any) -> Any:
        return lambda p, b: F.cross_entropy(torch.func.functional_call(net, p, (b[0],)), b[1])

    def found(loss: Any, p: Any, batches: Any) -> Any:
        opt = hft.adamw(lr=0.05, eps=1e-3)
        return hft.hypergradient(opt, loss, lambda p: loss(p, batches[0]), p, batches, "lr")

    with torch.device("meta"):
        skeleton = checks.Net()  # as a process has it that cannot hold all weights
    cut = dict(module.named_parameters())
    assert_equal(found(hft.data_parallel(by(skeleton)), cut, mine), found(by(skeleton), start, data), "fully_shard")
    module(data[0][0])  # which prepares it
    with pytest.raises(ValueError, match="does not depend on the params"):  # it has taken its own weights
        found(by(module), cut, mine)


@on("2 processes")
def twice(folder: Path) -> None:
    """create_graph=True is exact, or refused where torch would lose a part of it."""

    def second(loss: Any, p: Any, batches: Any, opt: Any = ADAM) -> Tensor:
        lr = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
        with sdpa_kernel(SDPBackend.MATH):  # the fused one has no second derivative
            run = hft.train(opt, loss, p, batches, hparams={"lr": lr})
            value = loss(tree.map_tree(dtensors.whole, run.params), batches[0])
            (g,) = torch.autograd.grad(value, lr, create_graph=True)
            return torch.autograd.grad(g, lr)[0]

    data = [batch(t) for t in range(3)]
    found = second(hft.data_parallel(held_out), sharded(params()), [shard(b) for b in data])
    assert_equal(found, second(held_out, params(), data), "twice")

    def by_full_tensors(g: Any, s: Any, p: Any, h: Any) -> Any:
        moves = {n: h["lr"].full_tensor() * x.full_tensor() for n, x in g.items()}
        return {n: x - dtensors.replicated(moves[n], x.device_mesh) for n, x in p.items()}, s

    with pytest.raises(RuntimeError, match=r"the optimizer, makes plain tensors.*full_tensor"):
        second(held_out, sharded(params()), data, hft.sgd()._replace(update=by_full_tensors))


@on("2 processes")
def conversions(folder: Path) -> None:
    """Third derivatives of a function of plain numbers, through shards and back, where sums over processes are due."""
    values = torch.linspace(0.5, 1.5, 4, dtype=torch.float64)

    def of(x: Tensor, w: Any) -> Tensor:
        on_mesh = dtensors.replicated(x, w.device_mesh) if isinstance(w, DTensor) else x
        y = dtensors.whole((on_mesh * w).sin() * on_mesh)
        return (y**3).sum()

    def third(w: Any) -> Tensor:
        x = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        y = of(x, w)
        for _ in range(3):
            (y,) = torch.autograd.grad(y, x, create_graph=True)
        return y

    assert_equal(third(sharded(values)), third(values), "third derivative")


@on("2 processes")
def dropout_of_weights(folder: Path) -> None:
    def drops(p: Any, b: Batch) -> Tensor:
        return held_out({n: F.dropout(x, 0.5) for n, x in p.items()}, b)

    def found(loss: Any, p: Any, batches: Any) -> Any:
        torch.manual_seed(0)
        once = hft.Unroll(checkpoint=1)
        return hft.hypergradient(ADAM, loss, lambda p: loss(p, batches[0]), p, batches, "lr", strategy=once)

    data = [batch(t) for t in range(3)]
    mine = [shard(b) for b in data]
    assert_equal(found(hft.data_parallel(drops), sharded(params()), mine), found(drops, params(), data), "dropout")


@on("2 processes")
def refused(folder: Path) -> None:
    """What cannot be right is an error, on all processes."""
    data, cut, opt, loss = [batch(t) for t in range(3)], sharded(params()), hft.sgd(lr=0.1), held_out
    mine = [shard(b) for b in data]
    with pytest.raises(ValueError, match=r"training losses are not the same.*data_parallel"):
        hft.train(opt, loss, cut, mine)
    with pytest.raises(ValueError, match=r"outer loss is not the same.*data_parallel"):
        hft.hypergradient(opt, loss, lambda p: loss(p, mine[0]), cut, data, over="lr")
    with pytest.raises(ValueError, match="hparams are not the same on each process, from 0.1 to"):
        hft.train(hft.sgd(lr=0.1 * (1 + dist.get_rank())), loss, cut, data)
    with pytest.raises(ValueError, match=r"some params are DTensors.*Replicate"):
        hft.train(opt, loss, {**cut, "bias": params()["bias"]}, data)
    with pytest.raises(RuntimeError, match=r"torch\.func has no rules"):
        torch.func.vmap(lambda lr: hft.train(opt, loss, cut, data, hparams={**opt.hparams, "lr": lr}).params)(
            torch.tensor([0.1, 0.2])
        )
    with pytest.raises(RuntimeError, match="leave out compile"):
        hft.hypergradient(opt, loss, lambda p: loss(p, data[0]), cut, data, "lr", strategy=hft.Unroll(compile=True))
    target = sharded(params())["out"]

    def own_ops(p: Any, b: Batch) -> Tensor:
        return loss(p, b) + F.mse_loss(dtensors.replicated(p["out"], target.device_mesh), target).full_tensor()

    with pytest.raises(RuntimeError, match=r"train_loss computes with DTensors \(aten.*whole params"):
        hft.hypergradient(opt, own_ops, lambda p: loss(p, data[0]), cut, data, "lr")
