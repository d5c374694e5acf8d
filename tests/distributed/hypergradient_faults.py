"""Checks of what goes wrong in one process of data-parallel hypergradients: all of them have to know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import hyperopt_ftp as hft
from hyperopt_ftp import tree

from .hypergradients import (
    ADAM,
    STEPS,
    Batch,
    Loss,
    apart,
    batch,
    drawn,
    held_out,
    hypergradient,
    loss,
    own,
    params,
    shard,
)
from .launch import on


@on("2 processes")
def other_params(folder: Path) -> None:
    """A model that each process has initialised by a seed of its own."""
    mine = {name: x + dist.get_rank() * 1e-9 for name, x in params().items()}
    with pytest.raises(RuntimeError, match="are not those of process 0.*set one seed before the model is made"):
        hft.train(ADAM, hft.data_parallel(held_out), mine, [shard(batch(0))])


@on("2 processes")
def an_error_in_one_process(folder: Path) -> None:
    def wrong(p: dict[str, Tensor], batch: Batch) -> Tensor:
        if dist.get_rank() == 1:
            raise ZeroDivisionError("of this process alone")
        return held_out(p, batch)

    if dist.get_rank() == 1:
        caught = pytest.raises(ZeroDivisionError, match="of this process alone")
    else:
        caught = pytest.raises(RuntimeError, match="failed in process 1, whose own error says why")
    for call in (lambda f: hft.train(ADAM, f, params(), [shard(batch(0))]), lambda f: f(params(), shard(batch(0)))):
        with caught:
            call(hft.data_parallel(wrong))
    with caught:
        torch.func.grad(hft.data_parallel(wrong))(params(), shard(batch(0)))
    many, mine = tree.map_tree(lambda x: torch.stack([x, 2 * x]), params()), shard(batch(0))
    with caught:
        torch.func.vmap(lambda p: hft.data_parallel(wrong)(p, mine))(many)


@on("2 processes")
def a_count_in_one_process(folder: Path) -> None:
    """Of errors, say. A process without examples has a zero that is no count, and must not wait for the others."""

    def errors(p: dict[str, Tensor], batch: Batch) -> Tensor:
        return (held_out(p, batch) > 0).sum()

    if dist.get_rank() == 1:
        caught = pytest.raises(RuntimeError, match="failed in process 0, whose own error says why")
    else:
        caught = pytest.raises(ValueError, match="must return a floating-point tensor, got torch.int64; give it .float")
    mine = tuple(x[: 0 if dist.get_rank() == 1 else None] for x in shard(batch(0)))
    with caught:
        hft.data_parallel(errors)(params(), mine)


@on("2 processes")
def vmap_fails_in_one_process(folder: Path) -> None:
    """Then the samples run one after the other in all; an error of any kind stops all."""

    def looking(p: dict[str, Tensor], batch: Batch) -> Tensor:
        value = held_out(p, batch)
        return value if dist.get_rank() != 1 or value.item() > 0 else -value

    calls: list[int] = []

    def wrong(p: dict[str, Tensor], batch: Batch) -> Tensor:
        calls.append(1)
        if dist.get_rank() == 1 and len(calls) > STEPS + 2:
            raise ZeroDivisionError("of this process alone")
        return held_out(p, batch)

    def run(inner: Loss, outer: Loss, batches: list[Batch]) -> Any:
        strategy = hft.ZeroOrder(2, sigma=0.1, generator=torch.Generator().manual_seed(5))
        return hft.hypergradient(
            ADAM, inner, lambda p: outer(p, batches[0]), params(), batches, "lr", strategy=strategy
        )

    mine = [shard(batch(t)) for t in range(STEPS)]
    with pytest.warns(UserWarning, match="ZeroOrder trains its samples one after the other"):
        found = run(*[hft.data_parallel(looking)] * 2, mine)
    assert apart(found, run(held_out, held_out, [batch(t) for t in range(STEPS)])) <= 1e-12
    with pytest.raises((ZeroDivisionError, RuntimeError), match="of this process alone|has failed in process 1"):
        run(*[hft.data_parallel(wrong)] * 2, mine)


@on("2 processes")
def nan_in_one_process(folder: Path) -> None:
    """All stop with the same error, or all take the round back."""
    bad = [shard(batch(t)) for t in range(4)]
    if dist.get_rank() == 1:
        bad[2][0][0, 0] = float("nan")
    inner, outer = map(hft.data_parallel, (loss, held_out))

    def run(not_finite: Any) -> list[Any]:
        found = hft.bilevel(
            ADAM, hft.adam(), ("lr", "loss"), inner, outer, params(), bad, [shard(batch(9))], inner_steps=4,
            outer_steps=1, hparams={**ADAM.hparams, "loss": own()}, not_finite=not_finite,
        )  # fmt: skip
        return list(found)

    named = pytest.warns(UserWarning, match="the loss of process 1 is not finite")
    with named, pytest.raises(FloatingPointError, match="hypergradient of 'lr', 'loss' is not finite at outer step 1"):
        run("error")
    with pytest.warns(UserWarning, match="the loss of process"):
        (record,) = run("skip")
    assert record.skipped == ("lr", "loss")
    assert all(torch.equal(x, y) for x, y in zip(record.state.params.values(), params().values(), strict=True))


@on("2 processes")
def wrong_uses(folder: Path) -> None:
    """Each is refused by all processes."""
    whole, mine = hft.data_parallel(held_out), [shard(batch(0))] * 2

    def penalised(p: dict[str, Tensor], b: Batch) -> Tensor:
        return whole(p, b) + 0.1 * (p["in"] ** 2).sum()

    with pytest.raises(RuntimeError, match="train_loss calls a collective .*data_parallel.*itself as the loss"):
        hft.hypergradient(ADAM, penalised, lambda p: whole(p, mine[0]), params(), mine, "lr")
    for strategy in (hft.Unroll(compile=True), hft.Forward(compile=True)):
        with pytest.raises(ValueError, match="compile=True cannot take a data-parallel loss"):
            hypergradient(strategy, False)
    with pytest.raises(ValueError, match=r"outer_loss is data-parallel and needs its shard.*lambda p: whole"):
        hft.hypergradient(ADAM, whole, whole, params(), mine, "lr")
    with pytest.raises(ValueError, match="bilevel cannot differentiate in the shards of data_parallel"):
        next(
            hft.bilevel(
                ADAM, hft.adam(), ("batches.0.0", "lr"), whole, whole, params(), mine, mine, inner_steps=2,
                outer_steps=1,
            )
        )  # fmt: skip
    with pytest.raises(ValueError, match=r"its tensors have lengths \[2, 3\]; give size="):
        whole(params(), (torch.zeros(2, 5), torch.zeros(3)))
    with pytest.raises(RuntimeError, match="the shards of all processes are empty"):
        whole(params(), tuple(x[:0] for x in batch(0)))
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    for captured in (lambda p, b: held_out(p, b) * scale, lambda p, b: scale):
        with pytest.raises(ValueError, match=r"uses a tensor of shape \(\) that requires grad and is none of its arg"):
            hft.data_parallel(captured)(params(), mine[0])
    with pytest.raises(ValueError, match=rf"batches has {1 + dist.get_rank()} steps in this process, and from 1 to 2"):
        hft.train(ADAM, whole, params(), mine[: 1 + dist.get_rank()])
    with pytest.raises(ValueError, match="the outer loss is not the same in each process.*wrap it too"):
        hft.hypergradient(ADAM, whole, lambda p: held_out(p, mine[0]), params(), mine, "lr")
    zero = hft.hypergradient(ADAM, whole, lambda p: -0.0 * p["bias"].sum().abs(), params(), mine, "lr")[0]
    assert zero.item() == 0.0  # of either sign
    with pytest.raises(ValueError, match="size must give one finite number >= 0, got '4'"):
        hft.data_parallel(held_out, size=lambda b: "4")(params(), mine[0])
    with pytest.raises(ValueError, match="params have no floating-point tensor"):
        whole({}, mine[0])
    waves = {"w": torch.complex(drawn(1, 5), drawn(2, 5)).requires_grad_(), "bias": drawn(2, 8)}
    with pytest.raises(ValueError, match="a complex tensor of shape .* requires grad.*view_as_real"):
        hft.data_parallel(lambda p, x: (x.to(p["w"]) @ p["w"]).abs().mean())(waves, mine[0][0])
