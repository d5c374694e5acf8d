"""What is checked in each process. Every check compares with the same training in one process, on the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.debug import CommDebugMode

import hyperopt_ftp as hft

BATCH, STEPS = 8, 6


class Net(nn.Module):
    """Rows that do not divide by the number of processes, one row, fewer rows than processes, vectors, a table."""

    def __init__(self, layers: int = 1) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 6)
        self.position = nn.Parameter(torch.randn(1, 4, 6) * 0.1)
        self.norm = nn.LayerNorm(6)
        self.mix = nn.Conv1d(4, 5, 3, padding=1)
        self.body = nn.ModuleList(nn.Linear(6, 6) for _ in range(layers))
        self.narrow = nn.Linear(6, 3)
        self.head = nn.Linear(15, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(self.norm(self.table(x) + self.position))
        for layer in self.body:
            y = torch.tanh(layer(y))
        return self.head(self.narrow(y).flatten(1))


def net(dtype: torch.dtype = torch.float64, layers: int = 1) -> Net:
    torch.manual_seed(1)
    return Net(layers).to(dtype)


def batches(steps: range = range(STEPS)) -> Iterator[tuple[Tensor, Tensor]]:
    for t in steps:
        g = torch.Generator().manual_seed(100 + t)
        yield torch.randint(7, (BATCH, 4), generator=g), torch.randint(2, (BATCH,), generator=g)


def train(model: nn.Module, opt: torch.optim.Optimizer, steps: range = range(STEPS), *, whole: bool = False) -> None:
    """On this process's part of each batch, or on the whole one."""
    mine = slice(None) if whole else slice(dist.get_rank(), None, dist.get_world_size())
    for x, y in batches(steps):
        opt.zero_grad()
        nn.functional.cross_entropy(model(x[mine]), y[mine]).backward()
        opt.step()


def full(x: Tensor) -> Tensor:
    return (x.full_tensor() if isinstance(x, DTensor) else x).detach()


def adamw(params: Any, **options: Any) -> torch.optim.Optimizer:
    return hft.FTPAdamW(params, lr=0.02, weight_decay=0.1, radius_lr=0.02, exclude="head.*", **options)


def sgd(params: Any, **options: Any) -> torch.optim.Optimizer:
    return hft.FTPSGD(params, lr=0.2, momentum=0.9, radius_lr=0.02, exclude="head.*", **options)


def wrapped(params: Any, **options: Any) -> torch.optim.Optimizer:
    options.pop("foreach", None)
    return hft.FTP(torch.optim.AdamW(params, lr=0.02), radius_lr=0.02, exclude="head.*", **options)


OPTIMIZERS = (adamw, sgd, wrapped)


def assert_alike(model: nn.Module, opt: Any, reference: nn.Module, expected: Any, tolerance: float) -> None:
    """Weights and radii are those of one process; radii are the same everywhere, to the last bit."""
    for (name, p), q in zip(model.named_parameters(), reference.parameters(), strict=True):
        error = (full(p).double() - q.detach().double()).abs().max().item()
        assert error <= tolerance, f"{name} is off by {error}"
    radii = dict(zip(expected.radii(), opt.radii().values(), strict=True))
    for name, radius in expected.radii().items():
        assert abs(radii[name] - radius) <= tolerance, f"the radius of {name} is {radii[name]}, not {radius}"
    everywhere: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, list(opt.radii().values()))
    assert all(other == everywhere[0] for other in everywhere)


def alone(make: Callable[..., Any], dtype: torch.dtype = torch.float64, **options: Any) -> tuple[Net, Any]:
    """One process, the pure functions."""
    model = net(dtype)
    opt = make(model.named_parameters(), foreach=False, **options)
    train(model, opt, whole=True)
    return model, opt


def ddp(folder: Path) -> None:
    for make in OPTIMIZERS:
        reference, expected = alone(make)
        model = nn.parallel.DistributedDataParallel(net())
        opt = make(model.named_parameters())  # its names begin with "module."
        train(model, opt)
        assert_alike(model, opt, reference, expected, 1e-10)


def sharded(make: Callable[..., Any], dtype: torch.dtype = torch.float64, **options: Any) -> tuple[Net, Any]:
    model = fully_shard(net(dtype))
    return model, make(model.named_parameters(), **options)


def fsdp(folder: Path) -> None:
    for make in OPTIMIZERS:
        for options in ({}, {"norm": "l2"}, {"gradient": "exact"}, {"kappa": 0.0}):
            reference, expected = alone(make, **options)
            model, opt = sharded(make, **options)
            train(model, opt)
            assert opt.execution == "sharded"
            assert_alike(model, opt, reference, expected, 1e-10)


def fsdp_in_float32(folder: Path) -> None:
    for make in OPTIMIZERS:
        reference, expected = alone(make, torch.float32)
        model, opt = sharded(make, torch.float32)
        train(model, opt)
        assert_alike(model, opt, reference, expected, 1e-6)


def two_collectives(folder: Path) -> None:
    """However many layers there are, in however many groups."""
    for make in OPTIMIZERS:
        for layers in (1, 9):
            model = fully_shard(net(layers=layers))
            named = list(model.named_parameters())
            opt = make([{"params": named[:3]}, {"params": named[3:], "lr": 0.01}])
            for x, y in batches(range(3)):
                opt.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                with CommDebugMode() as seen:
                    opt.step()
                assert seen.get_total_counts() == 2, seen.get_comm_counts()
            assert opt.execution == "sharded"


def anchors(folder: Path) -> None:
    """Given whole, spread, or zero; the first radius is measured over all processes."""
    weights = {
        n: p.detach() + 0.01 * torch.sin(torch.arange(p.numel())).view(p.shape) for n, p in net().named_parameters()
    }
    for norm in ("mars", "l2"):
        for anchor in (weights, "zero"):
            reference, expected = alone(adamw, anchor=anchor, norm=norm)
            model, opt = sharded(adamw, anchor=anchor, norm=norm)
            train(model, opt)
            assert_alike(model, opt, reference, expected, 1e-10)
    reference, expected = alone(adamw, anchor=weights)
    model = fully_shard(net())
    spread = {n: p.detach().clone() for n, p in model.named_parameters()}
    for name, w0 in spread.items():
        w0.copy_(torch.distributed.tensor.distribute_tensor(weights[name], w0.device_mesh, w0.placements))
    opt = adamw(model.named_parameters(), anchor=spread, anchor_dtype=torch.bfloat16)
    train(model, opt)
    assert_alike(model, opt, reference, expected, 1e-10)


def hsdp(folder: Path) -> None:
    """Replicas of shards."""
    replicas = 2 if dist.get_world_size() == 4 else 1
    mesh = init_device_mesh("cpu", (replicas, dist.get_world_size() // replicas), mesh_dim_names=("replicate", "shard"))
    for make in OPTIMIZERS:
        reference, expected = alone(make)
        model = fully_shard(net(), mesh=mesh)
        opt = make(model.named_parameters())
        train(model, opt)
        assert opt.execution == "sharded"
        assert_alike(model, opt, reference, expected, 1e-10)


def other_placements(folder: Path) -> None:
    """Columns sharded: the pure functions run on DTensors."""
    for make in OPTIMIZERS:
        reference, expected = alone(make)
        model = fully_shard(net(), shard_placement_fn=lambda p: Shard(1) if p.shape == (5, 4, 3) else None)
        opt = make(model.named_parameters())
        train(model, opt)
        assert opt.execution == "single"
        assert_alike(model, opt, reference, expected, 1e-10)
