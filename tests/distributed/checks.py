"""What is checked in each process. Every check compares with the same training in one process, on the whole batch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

import hyperopt_ftp as hft
from hyperopt_ftp import plot

from ..support.family import HELD, Method
from .hypergradients import full
from .launch import gathered, on

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
    everywhere = gathered(list(opt.radii().values()))
    assert all(other == everywhere[0] for other in everywhere)


def alone(make: Callable[..., Any], dtype: torch.dtype = torch.float64, **options: Any) -> tuple[Net, Any]:
    """One process, the pure functions."""
    model = net(dtype)
    opt = make(model.named_parameters(), foreach=False, **options)
    train(model, opt, whole=True)
    return model, opt


def assert_as_alone(
    make: Callable[..., Any],
    spread: Callable[[Net], Any],
    dtype: torch.dtype = torch.float64,
    tolerance: float = 1e-10,
    execution: str = "sharded",
    **options: Any,
) -> None:
    """A model that ``spread`` gives to many processes trains as one process does with the pure functions."""
    reference, expected = alone(make, dtype, **options)
    model = spread(net(dtype))
    opt = make(model.named_parameters(), **options)
    train(model, opt)
    assert opt.execution == execution
    assert_alike(model, opt, reference, expected, tolerance)


@on("2 processes")
def ddp(folder: Path) -> None:
    """Its names begin with "module."."""
    for make in OPTIMIZERS:
        assert_as_alone(make, nn.parallel.DistributedDataParallel, execution="fused_cpu")


def sharded(make: Callable[..., Any], dtype: torch.dtype = torch.float64, **options: Any) -> tuple[Net, Any]:
    model = fully_shard(net(dtype))
    return model, make(model.named_parameters(), **options)


@on("1 process", "4 processes", "2 processes")
def fsdp(folder: Path) -> None:
    """First in one process, which compiles the kernels for all."""
    each = [{}, {"norm": "l2"}, {"gradient": "exact"}, {"kappa": 0.0}, {"radius_start": 0.05}]
    for make in OPTIMIZERS:
        for options in each[: None if dist.get_world_size() == 2 else 2]:  # four take long on two cores
            assert_as_alone(make, fully_shard, **options)
        assert_as_alone(make, fully_shard, torch.float32, 1e-6)


@on("2 processes")
def watched(folder: Path) -> None:
    """All processes measure, one writes."""
    _, expected = alone(adamw)
    model = fully_shard(net())
    opt = adamw(model.named_parameters())
    file = folder / f"watched by {dist.get_world_size()}.csv"
    hft.watch(opt, file)
    train(model, opt)
    dist.barrier()
    steps, layers, values = plot.history(file, "distance")
    assert steps == list(range(1, STEPS + 1))
    assert len(file.read_text().splitlines()) == 1 + STEPS * len(layers)
    for measured in (hft.measure(opt), hft.measure(expected)):
        assert layers == list(measured)
        for value, layer in zip(values[-1], measured.values(), strict=True):
            assert abs(value - layer["distance"]) <= 1e-5 * layer["distance"], (value, layer)  # six digits are written


def around(method: Method) -> Callable[..., torch.optim.Optimizer]:
    """A class of the anchored family, around AdamW."""

    def build(params: Any, **options: Any) -> torch.optim.Optimizer:
        options.pop("foreach", None)
        return method.around(torch.optim.AdamW(params, lr=0.02), exclude="head.*", **options)

    return build


@on("2 processes")
def family(folder: Path) -> None:
    """Each rule gives the weights of one process, also after a checkpoint, and keeps its state in shards."""
    free = net()
    train(free, torch.optim.AdamW(free.parameters(), lr=0.02), whole=True)
    for method in HELD:
        reference, single = alone(around(method))
        apart = max((p - q).abs().max().item() for p, q in zip(reference.parameters(), free.parameters(), strict=True))
        assert apart > 1e-4, f"{method} does nothing here"
        model, opt = sharded(around(method))
        train(model, opt, range(3))
        saved = copy.deepcopy(opt.state_dict())
        opt = around(method)(model.named_parameters())
        opt.load_state_dict(saved)
        train(model, opt, range(3, STEPS))
        for (name, p), q in zip(model.named_parameters(), reference.parameters(), strict=True):
            error = (full(p) - q.detach()).abs().max().item()
            assert error <= 1e-10, f"{method}: {name} is off by {error}"
        mine, theirs = hft.measure(opt), hft.measure(single)
        for (name, layer), other in zip(mine.items(), theirs.values(), strict=True):
            assert layer == pytest.approx(other, abs=1e-6), f"{method}: {name} measures {layer}, not {other}"
        large = ["anchor", *(key for key, kind in opt._mover.kinds.items() if kind == "weights")]
        whole = [key for s in opt.state.values() for key in large if key in s and not isinstance(s[key], DTensor)]
        assert not whole, f"{method} keeps {whole} whole"


@on("4 processes", "2 processes")
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


def elsewhere() -> dict[str, Tensor]:
    """Weights near those of the start."""
    return {
        n: p.detach() + 0.01 * torch.sin(torch.arange(p.numel())).view(p.shape) for n, p in net().named_parameters()
    }


@on("1 process", "4 processes", "2 processes")
def anchors(folder: Path) -> None:
    """Given whole, spread, or zero; the first radius is measured over all processes."""
    weights = elsewhere()
    for norm in ("mars", "l2"):
        for anchor in (weights, "zero"):
            assert_as_alone(adamw, fully_shard, anchor=anchor, norm=norm)
    reference, expected = alone(adamw, anchor=weights)
    model = fully_shard(net())
    spread = {n: p.detach().clone() for n, p in model.named_parameters()}
    for name, w0 in spread.items():
        w0.copy_(distribute_tensor(weights[name], w0.device_mesh, w0.placements))
    opt = adamw(model.named_parameters(), anchor=spread, anchor_dtype=torch.bfloat16)
    train(model, opt)
    assert_alike(model, opt, reference, expected, 1e-10)


@on("4 processes")
def hsdp(folder: Path) -> None:
    """Replicas of shards."""
    replicas = 2 if dist.get_world_size() == 4 else 1
    mesh = init_device_mesh("cpu", (replicas, dist.get_world_size() // replicas), mesh_dim_names=("replicate", "shard"))
    for make in OPTIMIZERS:
        assert_as_alone(make, partial(fully_shard, mesh=mesh))


@on("2 processes")
def sharded_late(folder: Path) -> None:
    """Parameters that become DTensors after the optimizer was built, as Accelerate does it."""
    for make in OPTIMIZERS:
        reference, expected = alone(make)
        model = net()
        opt = make(model.named_parameters())
        fully_shard(model)
        opt.param_groups[0]["params"][:] = list(model.parameters())
        train(model, opt)
        assert opt.execution == "sharded"
        assert_alike(model, opt, reference, expected, 1e-10)


@on("1 process", "2 processes")
def nothing_constrained(folder: Path) -> None:
    """A step of unconstrained layers alone: all are excluded, or only the head has gradients."""
    for make in OPTIMIZERS:
        for frozen in ("", "head."):
            reference = net()
            expected = make(reference.named_parameters(), foreach=False)
            model, opt = sharded(make)
            for who, with_model in ((expected, reference), (opt, model)):
                train(with_model, who, range(2), whole=True)
                for name, p in with_model.named_parameters():
                    p.requires_grad_(not frozen or name.startswith(frozen))
                train(with_model, who, range(2, 4), whole=True)
            assert_alike(model, opt, reference, expected, 1e-10)
    model = fully_shard(net())
    with pytest.warns(UserWarning, match="exclude leaves FTP no parameter of"):
        opt = hft.FTP(torch.optim.SGD(model.named_parameters(), lr=0.1), exclude="*")
    train(model, opt, range(1))


@on("2 processes")
def nan_in_an_anchor(folder: Path) -> None:
    """In one process's shard: all of them refuse it."""
    model = fully_shard(net())
    spread = {n: p.detach().clone() for n, p in model.named_parameters()}
    if dist.get_rank() == 0:
        spread["mix.weight"].to_local().fill_(float("nan"))
    with pytest.raises(ValueError, match=r"'mix.weight' must be finite"):
        adamw(model.named_parameters(), anchor=spread)


@on("2 processes")
def other_forms_of_state(folder: Path) -> None:
    """A whole checkpoint, of a fused run, into shards; state of shards into a whole model."""
    for make in OPTIMIZERS:
        options = {} if make is wrapped else {"fused": True}
        reference = net()
        expected = make(reference.named_parameters(), **options)
        train(reference, expected, range(3), whole=True)
        model = fully_shard(net())
        set_model_state_dict(model, reference.state_dict(), options=StateDictOptions(full_state_dict=True))
        opt = make(model.named_parameters())
        opt.load_state_dict(copy.deepcopy(expected.state_dict()))
        train(model, opt, range(3, STEPS))
        assert opt.execution == "sharded"
        back = net()
        back.load_state_dict({name: full(w) for name, w in model.state_dict().items()})
        again = make(back.named_parameters(), **options)
        again.load_state_dict(opt.state_dict())
        train(back, again, range(STEPS, STEPS + 2), whole=True)
        train(reference, expected, range(3, STEPS + 2), whole=True)
        assert_alike(back, again, reference, expected, 1e-10)


@on("2 processes")
def other_placements(folder: Path) -> None:
    """Columns sharded: the pure functions run on DTensors. An anchor has the fingerprint of the whole one."""
    for make in OPTIMIZERS:
        reference, expected = alone(make, save_anchor=False)
        model = fully_shard(net(), shard_placement_fn=lambda p: Shard(1) if p.shape == (5, 4, 3) else None)
        opt = make(model.named_parameters(), save_anchor=False)
        train(model, opt)
        assert opt.execution == "single"
        assert_alike(model, opt, reference, expected, 1e-10)
        for p, q in zip(model.parameters(), reference.parameters(), strict=True):
            assert opt.state[p].get("anchor_fingerprint") == expected.state[q].get("anchor_fingerprint")


@on("1 process", "2 processes")
def sixteen_bits(folder: Path) -> None:
    """bfloat16 weights: c is their master copy, in shards too."""
    for make, anchor in product(OPTIMIZERS[:2], (None, elsewhere())):
        reference = net(torch.bfloat16)
        expected = make(reference.named_parameters(), foreach=False, anchor=anchor)
        model, opt = sharded(make, torch.bfloat16, anchor=anchor)
        for t in range(STEPS):
            g = torch.Generator().manual_seed(t)
            for p, q in zip(model.parameters(), reference.parameters(), strict=True):
                q.grad = (torch.randn(q.shape, generator=g) + 0.3).bfloat16()
                p.grad = distribute_tensor(q.grad, p.device_mesh, p.placements)
            opt.step()
            expected.step()
        for p, q in zip(model.parameters(), reference.parameters(), strict=True):
            state = opt.state[p]
            assert state.get("deviation", state["step"]).dtype == torch.float32
            # Sums in another order: seldom, and to the next number at most.
            off = (full(p).float() - q.float()).abs()
            assert (off <= torch.finfo(torch.bfloat16).eps * q.float().abs()).all()
            assert (off > 0).sum() <= 0.002 * q.numel() + 1
        assert opt.execution == "sharded"


@on("2 processes")
def mixed_precision(folder: Path) -> None:
    """Forward and backward in bfloat16, clipped gradients, float32 weights; replicas of the radii stay equal."""
    model = fully_shard(net(torch.float32), mp_policy=MixedPrecisionPolicy(torch.bfloat16, torch.float32))
    opt = adamw(model.named_parameters())
    for x, y in batches():
        opt.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        opt.step()
    everywhere = gathered(list(opt.radii().values()))
    assert all(other == everywhere[0] for other in everywhere)
    assert max(everywhere[0]) > 1e-3


@on("2 processes")
def overflow(folder: Path) -> None:
    """An infinity in one process's shard: no process makes the step, and nothing changes anywhere."""
    for make in OPTIMIZERS:
        model, opt = sharded(make, torch.float32)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        before = None
        for t, (x, y) in enumerate(batches()):
            opt.zero_grad()
            scaler.scale(nn.functional.cross_entropy(model(x), y)).backward()
            shard = model.mix.weight.grad.to_local()
            if t == 3 and dist.get_rank() == 0:
                shard.view(-1)[0] = float("inf")
            if t == 3:
                before = [full(p).clone() for p in model.parameters()], dict(opt.radii())
            scaler.step(opt)
            scaler.update()
            if t == 3:
                assert before is not None
                after = [full(p).clone() for p in model.parameters()], dict(opt.radii())
                assert all(torch.equal(a, b) for a, b in zip(before[0], after[0], strict=True))
                assert before[1] == after[1]
                assert scaler.get_scale() == 512.0
        counts = {opt.state[p]["radius_step"].item() for p in model.parameters() if "radius" in opt.state[p]}
        assert counts == {STEPS - 1}


# Checkpoints: 1 process saves, 4 load and save, 2 load and save, 1 loads.


def states(model: nn.Module, opt: torch.optim.Optimizer) -> dict[str, Any]:
    return dict(zip(("model", "optimizer"), get_state_dict(model, opt), strict=True))


def save(model: nn.Module, opt: torch.optim.Optimizer, folder: Path) -> None:
    dcp.save(states(model, opt), checkpoint_id=folder)


def load(model: nn.Module, opt: torch.optim.Optimizer, folder: Path) -> None:
    state = states(model, opt)  # of a fresh optimizer: a step with lr = 0
    dcp.load(state, checkpoint_id=folder)
    set_state_dict(model, opt, model_state_dict=state["model"], optim_state_dict=state["optimizer"])


#: Each by its own name, so that checkpoints do not meet.
KINDS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "adamw": (adamw, {}),
    "sgd": (sgd, {"norm": "l2"}),
    "wrapped": (wrapped, {}),
    "left-out": (adamw, {"anchor": elsewhere(), "save_anchor": False}),
    "zero": (adamw, {"anchor": "zero"}),
}


def saved_by(processes: int, folder: Path, name: str) -> Path:
    return folder / f"saved-by-{processes}-{name}"


def resume(folder: Path, before: int, now: int, steps: range) -> None:
    """Load what ``before`` processes have saved, go on, save; the run is that of one process."""
    for name, (make, options) in KINDS.items():
        torch.manual_seed(7)
        model = Net().double()  # other weights: all come from the checkpoint
        if now > 1:
            fully_shard(model)
        opt = make(model.named_parameters(), **options)
        load(model, opt, saved_by(before, folder, name))
        train(model, opt, steps, whole=now == 1)
        if now > 1:
            save(model, opt, saved_by(now, folder, name))
        reference = net()
        expected = make(reference.named_parameters(), **{"foreach": False, **options})
        train(reference, expected, range(steps.stop), whole=True)
        for (key, p), q in zip(model.named_parameters(), reference.named_parameters(), strict=True):
            error = (full(p) - q[1]).abs().max().item()
            assert error <= 1e-10, f"{name}: {key} is off by {error}"
        radii = zip(opt.radii().values(), expected.radii().items(), strict=True)
        assert all(abs(a - b) <= 1e-10 for a, (_, b) in radii), (name, opt.radii(), expected.radii())
        assert opt.execution == ("sharded" if now > 1 else "fused_cpu")


@on("1 process")
def saves(folder: Path) -> None:
    for name, (make, options) in KINDS.items():
        model = net()
        opt = make(model.named_parameters(), **options)
        train(model, opt, range(3), whole=True)
        save(model, opt, saved_by(1, folder, name))


@on("4 processes")
def resume_of_1(folder: Path) -> None:
    resume(folder, 1, 4, range(3, 5))


@on("2 processes")
def resume_of_4(folder: Path) -> None:
    resume(folder, 4, 2, range(5, 7))


@on("1 process again")
def resume_of_2(folder: Path) -> None:
    resume(folder, 2, 1, range(7, 9))


@on("2 processes")
def another_anchor(folder: Path) -> None:
    """An anchor that a checkpoint leaves out is known again by every process.

    With ``anchor=None`` it is that of torch's own step on a fresh optimizer: the weights of now.
    """
    for anchor in (None, dict(net().named_parameters())):
        model = fully_shard(net())
        opt = adamw(model.named_parameters(), anchor=anchor, save_anchor=False)
        with pytest.raises(ValueError, match="is not the one that the checkpoint was made with"):
            load(model, opt, saved_by(4, folder, "left-out"))
