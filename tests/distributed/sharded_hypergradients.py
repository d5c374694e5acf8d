"""Hypergradients of sharded params, in each process: equal to those of one process and plain tensors.

Float64, sums of at most a few hundred terms of size 1, a few steps: rounding stays below 1e-12.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn import functional as F

import hyperopt_ftp as hft
from hyperopt_ftp import dtensors, tree

from ..support.cases import CASES
from .checks import full

TOLERANCE = 1e-12
STEPS = 3

STRATEGIES = (
    hft.Unroll(),
    hft.Unroll(checkpoint=1),
    hft.Unroll(checkpoint="sqrt"),
    hft.Unroll(checkpoint="log"),
    hft.Unroll(checkpoint=1, offload=True),
    hft.Unroll(memory=2**24),
    hft.Unroll(truncate=2),
    hft.Forward(),
    hft.Forward(chunk=1),
    hft.Implicit(tolerance=2.0),
    hft.ZeroOrder(samples=2, sigma=0.1),
)


class Net(nn.Module):
    """Rows that do not divide by the number of processes, a table, a norm, vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm, self.up, self.head = (
            nn.Embedding(7, 6),
            nn.LayerNorm(6),
            nn.Linear(6, 5),
            nn.Linear(5, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.up(self.norm(self.table(x).mean(1)))))


def net() -> Net:
    torch.manual_seed(1)
    return Net().double()


def mesh() -> DeviceMesh:
    return init_device_mesh("cpu", (dist.get_world_size(),))


def spread(values: Any, *placements: Any) -> Any:
    at = placements or (Shard(0),)
    return tree.map_tree(lambda x: distribute_tensor(x, mesh(), list(at)) if isinstance(x, Tensor) else x, values)


def batches() -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(2)
    return [(torch.randint(7, (8, 4), generator=g), torch.randint(3, (8,), generator=g)) for _ in range(STEPS)]


def shards(values: Any) -> Any:
    """This process's examples."""
    return tree.map_tree(lambda x: x[dist.get_rank() :: dist.get_world_size()], values)


def of_net(p: Any, batch: Any, h: Any) -> Tensor:
    """By a module that holds no weights, as a process does that cannot hold all of them."""
    with torch.device("meta"):
        skeleton = Net()
    value = F.cross_entropy(torch.func.functional_call(skeleton, p, (batch[0],)), batch[1])
    return value + h["l2"] * sum((x**2).sum() for x in p.values())


def of_two_layers(p: Any, batch: Any, h: Any) -> Tensor:
    x, y = batch
    z = torch.tanh(x @ p["w"].T + p["b"])
    return ((z - y) ** 2).mean() + h["l2"] * (p["w"] ** 2).sum()


def two_layers() -> tuple[Any, list[Any]]:
    g = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    return {"w": draw(6, 3) * 0.5, "b": draw(6) * 0.5}, [(draw(8, 3), draw(8, 6)) for _ in range(STEPS)]


def hypergradients(loss: Any, params: Any, data: Any, opt: Any, over: Any, strategy: Any = None) -> Any:
    """Value, hypergradients, and where training ended."""
    torch.manual_seed(0)  # of ZeroOrder
    own = {"l2": torch.tensor(0.1, dtype=torch.float64)}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*(is exactly 0|has not converged|one after the other|is not the fixed)")
        return hft.hypergradient(
            opt,
            loss,
            lambda p, h: loss(p, data[0], h),
            params,
            data,
            over,
            {**opt.hparams, "loss": own},
            None,
            strategy,
        )


def assert_same(found: Any, expected: Any, what: str) -> None:
    """Also on all processes, to the last bit."""
    rows = list(zip(tree.leaves(found), tree.leaves(expected), strict=True))
    for x, y in rows:
        if isinstance(x, Tensor):
            error = (full(x).double() - y.detach().double()).abs().nan_to_num(1e9).sum().item()
            assert error <= TOLERANCE, f"{what}: {x} is off by {error}"
    numbers = [full(x) for x, _ in rows if isinstance(x, Tensor)]
    everywhere: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, [x.tolist() for x in numbers])
    assert all(other == everywhere[0] for other in everywhere), what


def strategies(folder: Path) -> None:
    """By all of them, of a module that runs on whole params."""
    opt, over = hft.adam(lr=0.05, eps=1e-3), ("lr", "loss")
    params, data = {n: p.detach() for n, p in net().named_parameters()}, batches()
    for strategy in STRATEGIES:
        expected = hypergradients(of_net, params, data, opt, over, strategy)
        found = hypergradients(hft.data_parallel(of_net), spread(params), shards(data), opt, over, strategy)
        assert_same(found, expected, str(strategy))
        assert all(not isinstance(g, DTensor) for g in tree.leaves(found[1]))


def placements(folder: Path) -> None:
    opt, (plain, data) = hft.adam(lr=0.05, eps=1e-3), two_layers()
    for over in ("lr", "params"):
        expected = hypergradients(of_two_layers, plain, data, opt, over)
        for placement in (Shard(0), Shard(-1), Replicate()):
            params = spread(plain, placement)
            found = hypergradients(hft.data_parallel(of_two_layers), params, shards(data), opt, over)
            assert_same(found, expected, f"{over}, {placement}")
            for x, y in zip(tree.leaves(found[2][0]), tree.leaves(params), strict=True):
                assert x.placements == y.placements
        found = hypergradients(of_two_layers, spread(plain), data, opt, over)  # each process computes all of it
        assert_same(found, expected, f"{over}, without data_parallel")
    (found,) = hypergradients(hft.data_parallel(of_two_layers), params, shards(data), opt, "batches.1.0")[1].values()
    (expected,) = hypergradients(of_two_layers, plain, data, opt, "batches.1.0")[1].values()
    torch.testing.assert_close(found, shards(expected), rtol=0, atol=TOLERANCE)


#: Those with operations that others do not have.
KINDS = ("sgd", "adamw", "adafactor", "nadam", "muon", "ftp", "projected-l2", "digrap", "clipped", "noisy")


def optimizers(folder: Path) -> None:
    """Those of the table make the same updates; some are differentiated in all their hparams. Anchors are whole."""
    for case in CASES:
        opt, (params, grads) = case.build(), _of_the_table()
        ends = []
        for p, gs in ((spread(params), spread(grads)), (params, grads)):
            state = opt.init(p)
            for g in gs:
                p, state = opt.update(g, state, p)
            ends.append((p, state))
        assert_same(ends[0], ends[1], case.name)
        if case.name in KINDS:
            to_a_point = hft.data_parallel(_to_a_point, size=lambda x: 1)
            found = hypergradients(to_a_point, spread(params), grads, opt, None)
            assert_same(found, hypergradients(_to_a_point, params, grads, opt, None), case.name)
            for x in tree.leaves(found[2]):
                assert not isinstance(x, DTensor) or not any(p.is_partial() for p in x.placements), case.name


def _of_the_table() -> tuple[Any, Any]:
    g = torch.Generator().manual_seed(4)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    return {"w": draw(3, 4), "b": draw(4)}, [{"w": draw(3, 4), "b": draw(4)} for _ in range(STEPS)]


def _to_a_point(p: Any, x: Any, h: Any) -> Tensor:
    return sum(((p[n] - x[n]) ** 4).sum() for n in p) / 10 + h["l2"] * (p["w"] ** 2).sum()


def sizes(folder: Path) -> None:
    """Points, and what counts for memory=, are this process's part."""
    from hyperopt_ftp.hyper.unrolling.memory import bytes_of

    params = {"w": torch.randn(64, 32, dtype=torch.float64)}
    loss = hft.data_parallel(lambda p, x: (p["w"] * x).square().sum())
    run = hft.train(hft.adam(), loss, spread(params), [torch.ones(32)] * 2)
    whole, n = 64 * 32 * 8, dist.get_world_size()
    assert bytes_of(run.params, "cpu") == whole // n
    assert bytes_of((run.state.exp_avg, run.state.exp_avg_sq), "cpu") == 2 * whole // n


def fully_sharded(folder: Path) -> None:
    """FSDP2 cuts the params; its modules run on weights of their own."""
    plain = {n: p.detach() for n, p in net().named_parameters()}
    module: Any = fully_shard(net())
    params, data, opt = dict(module.named_parameters()), batches(), hft.adamw(lr=0.05, eps=1e-3)
    expected = hypergradients(of_net, plain, data, opt, "lr")
    assert_same(hypergradients(hft.data_parallel(of_net), params, shards(data), opt, "lr"), expected, "fully_shard")

    module(batches()[0][0])  # which prepares it

    def by_the_module(p: Any, batch: Any, h: Any) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(module, p, (batch[0],)), batch[1])

    with pytest.raises(ValueError, match="no argument of train"):  # a weight of its own
        hypergradients(by_the_module, params, data, opt, "lr")


def twice(folder: Path) -> None:
    """create_graph=True is exact, or refused where torch would lose a part of it."""
    params, data = two_layers()

    def second(loss: Callable[..., Tensor], p: Any, d: Any, opt: Any = hft.adam(eps=1e-3)) -> Tensor:  # noqa: B008
        lr = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
        own = {"l2": torch.tensor(0.1, dtype=torch.float64)}
        run = hft.train(opt, loss, p, d, hparams={**opt.hparams, "lr": lr, "loss": own})
        value = loss(tree.map_tree(dtensors.whole, run.params), d[0], own)
        (g,) = torch.autograd.grad(value, lr, create_graph=True)
        return torch.autograd.grad(g, lr)[0]

    def by_full_tensors(g: Any, s: Any, p: Any, h: Any) -> Any:
        moves = {n: h["lr"].full_tensor() * x.full_tensor() for n, x in g.items()}
        return {n: x - dtensors.replicated(moves[n], x.device_mesh) for n, x in p.items()}, s

    expected = second(of_two_layers, params, data)
    assert_same(second(hft.data_parallel(of_two_layers), spread(params), shards(data)), expected, "twice")
    with pytest.raises(RuntimeError, match=r"the optimizer, makes plain tensors.*full_tensor"):
        second(of_two_layers, spread(params), data, hft.sgd()._replace(update=by_full_tensors))


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

    assert_same(third(spread(values)), third(values), "third derivative")


def bilevel(folder: Path) -> None:
    params, data = {n: p.detach() for n, p in net().named_parameters()}, batches()

    def records(loss: Any, p: Any, data: Any) -> list[Any]:
        found = hft.bilevel(
            hft.adam(lr=0.02), hft.adam(lr=0.3), "lr", loss, loss, p, data, data[:1], inner_steps=2, outer_steps=3,
            constrain={"lr": "log"},
        )  # fmt: skip
        return [(torch.tensor(r.value), r.tuned, r.hypergradient, r.state.params) for r in found]

    def loss(p: Any, batch: Any) -> Tensor:
        return of_net(p, batch, {"l2": 0.0})

    found = records(hft.data_parallel(loss), spread(params), shards(data))
    assert_same(found, records(loss, params, data), "bilevel")


def others(folder: Path) -> None:
    """TPGM, FTP where rows divide by the number of processes, a tower, dropout."""
    params, data = two_layers()
    anchor = {n: x / 2 for n, x in params.items()}

    def loss(p: Any, batch: Any, h: Any = {"l2": 0.0}) -> Tensor:  # noqa: B006
        return of_two_layers(p, batch, h)

    expected = hft.tpgm(params, anchor, loss, data)
    assert_same(hft.tpgm(spread(params), anchor, hft.data_parallel(loss), shards(data)), expected, "tpgm")
    ftp = hft.ftp(hft.sgd(lr=0.2), anchor, radius_lr=0.5)  # a radius is clipped to the largest norm
    expected = hypergradients(of_two_layers, params, data, ftp, None)
    whole = hft.data_parallel(of_two_layers)
    assert_same(hypergradients(whole, spread(params), shards(data), ftp, None), expected, "ftp")
    tower = hft.hyper(hft.sgd(lr=0.05, momentum=0.9), by=hft.sgd(lr=1e-3), over="lr")
    expected = hypergradients(of_two_layers, params, data, tower, None)
    assert_same(hypergradients(whole, spread(params), shards(data), tower, None), expected, "hyper")

    def drops(p: Any, batch: Any, h: Any) -> Tensor:
        return of_two_layers({n: F.dropout(x, 0.5) for n, x in p.items()}, batch, h)

    once = hft.Unroll(checkpoint=1)
    expected = hypergradients(drops, params, data, hft.adam(), "lr", once)
    found = hypergradients(hft.data_parallel(drops), spread(params), shards(data), hft.adam(), "lr", once)
    assert_same(found, expected, "dropout")


def refused(folder: Path) -> None:
    """What cannot be right is an error, on all processes."""
    params, data = two_layers()
    cut, opt = spread(params), hft.sgd(lr=0.1)

    def loss(p: Any, batch: Any) -> Tensor:
        return of_two_layers(p, batch, {"l2": 0.0})

    with pytest.raises(ValueError, match=r"training losses are not the same.*data_parallel"):
        hft.train(opt, loss, cut, shards(data))
    with pytest.raises(ValueError, match=r"outer loss is not the same.*data_parallel"):
        hft.hypergradient(opt, loss, lambda p: loss(p, shards(data)[0]), cut, data, over="lr")
    with pytest.raises(ValueError, match="hparams are not the same on each process, from 0.1 to"):
        hft.train(hft.sgd(lr=0.1 * (1 + dist.get_rank())), loss, cut, data)
    with pytest.raises(ValueError, match=r"some params are DTensors.*Replicate"):
        hft.train(opt, loss, {**cut, "b": params["b"]}, data)
    with pytest.raises(RuntimeError, match=r"torch\.func has no rules"):
        torch.func.vmap(lambda lr: hft.train(opt, loss, cut, data, hparams={**opt.hparams, "lr": lr}).params)(
            torch.tensor([0.1, 0.2])
        )
    with pytest.raises(RuntimeError, match="leave out compile"):
        hft.hypergradient(opt, loss, lambda p: loss(p, data[0]), cut, data, "lr", strategy=hft.Unroll(compile=True))

    target = spread(data[0][1][0])

    def own_ops(p: Any, batch: Any) -> Tensor:
        return loss(p, batch) + F.mse_loss(dtensors.replicated(p["b"], mesh()), target).full_tensor()

    with pytest.raises(RuntimeError, match=r"train_loss computes with DTensors \(aten.*whole params"):
        hft.hypergradient(opt, own_ops, lambda p: loss(p, data[0]), cut, data, "lr")
