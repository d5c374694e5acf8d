"""Checks of hypergradients in each process, on shards of batches and of params: against the same training in one.

Float64, sums of at most a few hundred terms of size 1, a few steps: rounding stays below 1e-12.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Shard, distribute_tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import hyperopt_ftp as hft
from hyperopt_ftp import tree
from hyperopt_ftp.hyper.core.memory import bytes_of
from hyperopt_ftp.hyper.distributed.collectives import Team, Total
from hyperopt_ftp.hyper.unrolling import budget

from .launch import from_one, gathered, on

EXAMPLES, STEPS = 12, 5
#: Where the shards of 12 examples begin, for up to four processes.
UNEVEN, WITH_AN_EMPTY_ONE = (5, 7, 11), (0, 7, 7)

Batch = tuple[Tensor, ...]
Loss = Callable[..., Tensor]


def logits(p: dict[str, Tensor], x: Tensor, kept: Tensor) -> Tensor:
    """Attention over the features, a norm, and dropout by a mask."""
    h = F.layer_norm(torch.tanh(x @ p["in"] + p["bias"]), (8,)).view(-1, 4, 2)
    h = F.scaled_dot_product_attention(h, h, h).flatten(1) * kept * 1.25
    return h @ p["out"]


def loss(p: dict[str, Tensor], batch: Batch, own: dict[str, Tensor]) -> Tensor:
    """A weight for each example, and a penalty, which no shard may count twice."""
    x, y, index, kept = batch
    each = F.cross_entropy(logits(p, x, kept), y, reduction="none") * torch.sigmoid(own["weight"][index])
    return each.mean() + own["l2"] * sum((v**2).sum() for v in p.values())


def held_out(p: dict[str, Tensor], batch: Batch) -> Tensor:
    x, y, _, kept = batch
    return F.cross_entropy(logits(p, x, kept), y)


def drawn(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def params(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return {"in": drawn(1, 5, 8, dtype=dtype) / 2, "bias": drawn(2, 8, dtype=dtype), "out": drawn(3, 8, 3, dtype=dtype)}


def batch(t: int, dtype: torch.dtype = torch.float64) -> Batch:
    g = torch.Generator().manual_seed(100 + t)
    y, index = torch.randint(3, (EXAMPLES,), generator=g), torch.randint(20, (EXAMPLES,), generator=g)
    return drawn(200 + t, EXAMPLES, 5, dtype=dtype), y, index, (torch.rand(EXAMPLES, 8, generator=g) < 0.8).to(dtype)


def shard(whole: Batch, cuts: tuple[int, ...] = UNEVEN) -> Batch:
    rank, count = dist.get_rank(), dist.get_world_size()
    bounds = [0, *cuts[: count - 1], EXAMPLES]
    return tuple(x[bounds[rank] : bounds[rank + 1]] for x in whole)


def plain(values: Any) -> Any:
    return values


def sharded(values: Any, placement: Placement = Shard(0)) -> Any:  # noqa: B008
    """Tensors as DTensors, a part in each process."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return tree.map_tree(lambda x: distribute_tensor(x, mesh, [placement]), values)


def full(x: Tensor) -> Tensor:
    return (x.full_tensor() if isinstance(x, DTensor) else x).detach()


ADAM = hft.adam(lr=0.05, betas=(0.8, 0.9), eps=1e-3)
OVER = ("lr", "betas.0", "loss", "params")
SLOW: dict[str, Any] = {"over": "params", "opt": hft.sgd(lr=0.05)}


def own(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return {"weight": drawn(4, 20, dtype=dtype), "l2": torch.tensor(0.01, dtype=dtype)}


def hypergradient(
    strategy: Any,
    whole: bool,
    cuts: tuple[int, ...] = UNEVEN,
    dtype: torch.dtype = torch.float64,
    over: Any = OVER,
    opt: hft.Optimizer = ADAM,
    jolt: Callable[[Tensor], Tensor] = lambda x: x,
    place: Callable[[Any], Any] = plain,
) -> tuple[Any, ...]:
    """In one process on whole batches, or in all of them on their shards; ``jolt`` changes each tensor before.

    ``place`` puts the params where they are trained.
    """
    inner, outer, part = (loss, held_out, lambda b: b) if whole else (*map(hft.data_parallel, (loss, held_out)), None)
    part = part or (lambda b: shard(b, cuts))
    *batches, last = (part(tree.map_tree(jolt, batch(t, dtype))) for t in (*range(STEPS), 99))
    hparams = {**tree.map_tree(lambda x: x.to(dtype), opt.hparams), "loss": own(dtype)}
    start, hparams = tree.map_tree(jolt, (params(dtype), hparams))
    return hft.hypergradient(
        opt, inner, lambda p: outer(p, last), place(start), batches, over, hparams=hparams, strategy=strategy
    )


def leaves(values: Any) -> list[Tensor]:
    return [x.detach() for x in tree.leaves(values)]


def alone(strategy: Any, **options: Any) -> list[Tensor]:
    """What one process finds, on whole batches."""
    return leaves(hypergradient(strategy, True, **options))


def differences(found: Any, expected: Any) -> Tensor:
    """The largest difference of each two tensors, in terms of the largest entry."""
    pairs = [
        (x, y)
        for x, y in zip(tree.leaves(found), tree.leaves(expected), strict=True)
        if x.is_floating_point() and x.numel()
    ]
    rows = [(full(x) - y).abs().amax() / y.abs().amax().clamp(min=1e-300) for x, y in pairs]
    return torch.stack([x.double() for x in rows]).nan_to_num(torch.inf)


def apart(found: Any, expected: Any) -> float:
    """The largest difference of two trees, in terms of the largest entry of each tensor."""
    return differences(found, expected).amax().item()


#: Of the unit roundoff, for each condition. A step rounds a number about 20 times, some of these are sums of up to 12
#: terms, and 240 roundings of random signs are worth 16. Measured: 0.05 to 1.4 in 32 bits, up to 5 in 16.
ROUNDINGS = 16

Jolt = Callable[[Tensor], Tensor]


def with_rounding(compute: Callable[[Jolt], Any], dtype: torch.dtype, draws: int = 16) -> tuple[list[Tensor], Tensor]:
    """What ``compute`` gives in float64, and a unit for each tensor, in terms of its largest entry.

    A unit is the unit roundoff of the dtype times the condition of a tensor: how much its value moves for each unit by
    which all numbers that go in move, up or down. ``compute`` has to put each of them through its argument. It is the
    largest of some draws, and at least 1, since the tensor itself is rounded. In float64 for the smaller dtypes; for
    float64 in float32, so that it tells also of terms inside that cancel, as in Adam's 1 - beta_2^t. The processes
    share the draws.
    """
    exact = from_one(lambda: leaves(compute(lambda x: x)))
    little, used = (1e-7, torch.float64) if dtype != torch.float64 else (2**-24, torch.float32)

    def moved(draw: int) -> Tensor:
        generator = torch.Generator().manual_seed(draw)

        def jolt(x: Tensor) -> Tensor:
            signs = torch.randint(2, x.shape, generator=generator) * 2 - 1
            return (x * (1 + little * signs)).to(used) if x.is_floating_point() else x

        return differences(compute(jolt), exact)

    mine = [moved(draw) for draw in range(dist.get_rank(), draws, dist.get_world_size())]
    most = torch.stack([row for rows in gathered(mine) for row in rows]).amax(0)
    conditions = (most / little).clamp(min=1)
    return exact, conditions * torch.finfo(dtype).eps / 2


def assert_within(found: Any, exact: list[Tensor], unit: Tensor) -> None:
    """At most ``ROUNDINGS`` units off; both as of :func:`with_rounding`."""
    units = (differences(found, exact) / unit).amax().item()
    assert units <= ROUNDINGS, f"off by {units:.3g} units, allowed are {ROUNDINGS}"


def assert_the_same_everywhere(values: Any) -> None:
    """To the last bit."""
    leaves = [full(x) for x in tree.leaves(values) if isinstance(x, Tensor)]
    everywhere = gathered(leaves)
    for other in everywhere:
        assert all(torch.equal(x, y) for x, y in zip(other, leaves, strict=True))


STRATEGIES = {
    "all graphs": hft.Unroll(),
    "every point": hft.Unroll(checkpoint=1),
    "every second point": hft.Unroll(checkpoint=2, offload=True),
    "tree": hft.Unroll(checkpoint="log"),
    "graphs of gradients": hft.Unroll(checkpoint=False),
    "within memory": hft.Unroll(memory=80_000),
    "truncated": hft.Unroll(truncate=3),
    "forward": hft.Forward(),
    "forward by ones": hft.Forward(chunk=1),
    "implicit": hft.Implicit(damping=1.0, iterations=30, batches=2),
    "conjugate gradients": hft.Implicit(solver="cg", damping=1.0),
}


@on("2 processes", "4 processes")
def strategies(folder: Path) -> None:
    torch.manual_seed(dist.get_rank())
    warnings.filterwarnings("ignore", "Implicit: training has not converged|Implicit, solver|the hypergradient of")
    few = ("all graphs", "every point", "forward", "implicit")  # four processes take long on two cores
    for (name, strategy), place in product(STRATEGIES.items(), (plain, sharded)):
        if dist.get_world_size() > 2 and (name not in few or place is sharded):
            continue
        if place is sharded and isinstance(strategy, hft.Implicit):
            continue
        over = ("lr", "betas.0") if name == "forward by ones" else OVER  # one training for each number
        expected = from_one(partial(alone, strategy, over=over))
        for cuts in (UNEVEN, WITH_AN_EMPTY_ONE) if name in few and place is plain else (UNEVEN,):
            found = hypergradient(strategy, False, cuts, over=over, place=place)
            off = apart(found, expected)
            assert off <= 1e-12, f"{name}, shards at {cuts}, {place.__name__} params: off by {off}"
            assert_the_same_everywhere(found)
            assert not isinstance(found[1]["lr"], DTensor)


@on("2 processes", "4 processes")
def zero_order(folder: Path) -> None:
    """All processes look along the same directions, whatever their own random numbers are."""
    torch.manual_seed(dist.get_rank())
    found = hypergradient(hft.ZeroOrder(3, sigma=0.1), False)
    assert_the_same_everywhere(found)
    lr, whole = torch.tensor(0.05, dtype=torch.float64, requires_grad=True), hft.data_parallel(held_out)
    run = hft.train(
        ADAM, whole, params(), [shard(batch(t)) for t in range(STEPS)], hparams={**ADAM.hparams, "lr": lr},
        strategy=hft.ZeroOrder(3, sigma=0.1),
    )  # fmt: skip
    assert_the_same_everywhere(torch.autograd.grad(whole(run.params, shard(batch(99))), lr))
    for over, place in ((OVER, plain), (("lr", "loss"), sharded)):
        strategies = [hft.ZeroOrder(3, sigma=0.1, generator=torch.Generator().manual_seed(5)) for _ in range(2)]
        expected = from_one(partial(alone, strategies[0], over=over))
        assert apart(hypergradient(strategies[1], False, over=over, place=place), expected) <= 1e-12


@on("2 processes")
def in_bfloat16(folder: Path) -> None:
    """Of plain SGD, whose condition is small enough for 8 bits to say something."""
    found = hypergradient(hft.Unroll(), False, dtype=torch.bfloat16, **SLOW)
    assert found[1]["params"]["in"].dtype == torch.bfloat16
    assert_within(found, *with_rounding(lambda j: hypergradient(hft.Unroll(), True, jolt=j, **SLOW), torch.bfloat16))
    assert_the_same_everywhere(found)


@on("2 processes", "4 processes")
def sums_of_16_bits(folder: Path) -> None:
    """Are made in float32, and rounded once; where each partial sum is rounded, four processes differ."""
    mine = [drawn(10 + rank, 1000, dtype=torch.bfloat16) for rank in range(dist.get_world_size())]
    (found,) = Total.apply(Team(None), mine[0], mine[dist.get_rank()])
    assert torch.equal(found, torch.stack(mine).double().sum(0).bfloat16())


@on("2 processes", "4 processes")
def the_sum_of_shards(folder: Path) -> None:
    """A loss that is a sum; and one whose mean is over tokens that some examples have more of."""

    def total(p: dict[str, Tensor], batch: Batch) -> Tensor:
        return F.cross_entropy(logits(p, batch[0], batch[3]), batch[1], reduction="sum")

    def masked(p: dict[str, Tensor], batch: Batch) -> Tensor:
        return F.cross_entropy(logits(p, batch[0], batch[3]), batch[1], ignore_index=0)

    counted = hft.data_parallel(masked, size=lambda b: (b[1] != 0).sum())
    for whole, parallel in ((total, hft.data_parallel(total, reduction="sum")), (masked, counted)):
        expected = torch.func.grad_and_value(whole)(params(), batch(0))
        assert apart(torch.func.grad_and_value(parallel)(params(), shard(batch(0))), expected) <= 1e-13


@on("4 processes")
def groups(folder: Path) -> None:
    """Two groups that know nothing of each other."""
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    rank = dist.get_rank()
    mine = tuple(x[rank % 2 :: 2] for x in batch(rank // 2))
    found = torch.func.grad(hft.data_parallel(held_out, pairs[rank // 2]))(params(), mine)
    assert apart(found, torch.func.grad(held_out)(params(), batch(rank // 2))) <= 1e-13
    with pytest.raises(RuntimeError, match="not in the group"):
        hft.data_parallel(held_out, pairs[1 - rank // 2])(params(), mine)


# -- transforms, and derivatives of derivatives -----------------------------------------------------------------------


def constant_in_one(p: dict[str, Tensor], batch: Batch) -> Tensor:
    """A shard without anything to learn from takes part in every derivative."""
    return held_out(p, batch) if dist.get_rank() == 0 else batch[0].new_tensor(0.25)


def constant_in_one_by_hand(p: dict[str, Tensor], batch: Batch) -> Tensor:
    weight = UNEVEN[0] / EXAMPLES
    return weight * held_out(p, tuple(x[: UNEVEN[0]] for x in batch)) + (1 - weight) * 0.25


@on("2 processes")
def transforms(folder: Path) -> None:
    """Every transform of torch.func, in and around training, to the third order."""

    def after(inner: Loss, outer: Loss, part: Callable[[Batch], Batch]) -> Callable[[Tensor], Tensor]:
        batches, last = [part(batch(t)) for t in range(3)], part(batch(99))
        start, others = params(), own()

        def value(x: Tensor) -> Tensor:
            hparams = {**ADAM.hparams, "lr": x[0], "loss": {**others, "l2": x[1]}}
            trained = hft.train(ADAM, inner, start, batches, hparams=hparams).params
            with sdpa_kernel(SDPBackend.MATH):  # torch 2.15 has no forward mode of the fused one on a CPU
                return outer(trained, last) ** 2

        return value

    x = torch.tensor([0.05, 0.02], dtype=torch.float64)
    along = torch.tensor([1.0, -2.0], dtype=torch.float64)
    for outer, by_hand in ((held_out, held_out), (constant_in_one, constant_in_one_by_hand)):
        alone = after(loss, by_hand, lambda b: b)
        together = after(hft.data_parallel(loss), hft.data_parallel(outer), shard)
        for name, transform in {
            "grad": torch.func.grad,
            "jvp": lambda f: lambda x: torch.func.jvp(f, (x,), (along,)),
            "jacfwd": torch.func.jacfwd,
            "hessian": torch.func.hessian,
            "reverse over reverse": lambda f: torch.func.jacrev(torch.func.grad(f)),
            "third": lambda f: torch.func.jacrev(torch.func.jacrev(torch.func.grad(f))),
            "vmap of grad": lambda f: lambda x: torch.func.vmap(torch.func.grad(f))(torch.stack([x, 2 * x])),
        }.items():
            found, expected = transform(together)(x), transform(alone)(x)
            off = apart(found, expected)
            assert off <= 1e-11, f"{outer.__name__}, {name}: off by {off}"
            assert_the_same_everywhere(found)
        again = [x.clone().requires_grad_() for _ in range(2)]
        for value, at in zip((alone, together), again, strict=True):
            (first,) = torch.autograd.grad(value(at), at, create_graph=True)
            (first @ along).backward()
        assert apart(again[1].grad, again[0].grad) <= 1e-11


@on("2 processes")
def batches_of_vmap_inside_one_shard(folder: Path) -> None:
    """An empty shard has nothing that vmap batches, and takes part as if it had."""
    many = torch.stack([own()["weight"], -own()["weight"]])

    start, others = params(), own()

    def of_weight(inner: Loss, part: Batch) -> Callable[[Tensor], Tensor]:
        return torch.func.vmap(torch.func.grad(lambda w: inner(start, part, {**others, "weight": w})))

    found = of_weight(hft.data_parallel(loss), shard(batch(0), WITH_AN_EMPTY_ONE))(many)
    assert apart(found, of_weight(loss, batch(0))(many)) <= 1e-13


@on("2 processes")
def own_shards_are_differentiated(folder: Path) -> None:
    """The derivative in a batch: each process has that of its examples."""
    names = tuple(f"batches.{k}.0" for k in range(STEPS))
    expected = hypergradient(hft.Unroll(checkpoint=1), True, over=names)[1]
    for place in (plain, sharded):
        found = hypergradient(hft.Unroll(checkpoint=1), False, over=names, place=place)[1]
        assert apart(found, {name: shard((x,))[0] for name, x in expected.items()}) <= 1e-12
    for strategy in (hft.Forward(), hft.ZeroOrder(2, sigma=0.1)):
        with pytest.raises(ValueError, match=r"shards .*differ from process to process"):
            hypergradient(strategy, False, over=names)


# -- what differs between processes ------------------------------------------------------------------------------------


@on("2 processes", "4 processes")
def a_branch_in_one_process(folder: Path) -> None:
    """A step whose loss has another graph is looked at again, by that process alone; a linear one has no curvature."""

    def branching(p: dict[str, Tensor], batch: Batch) -> Tensor:
        x, y, _, kept = batch
        if dist.get_world_size() == len(ranks) and x[0, 0] > 0:  # in one process, and not in another
            return (x @ p["in"]).mean() + p["out"].mean() + p["bias"].mean()
        return F.cross_entropy(logits(p, x, kept), y)

    ranks = range(dist.get_world_size())
    parts = [[shard(batch(t)) for t in range(STEPS)], shard(batch(99))]
    everywhere = gathered(parts)
    assert len({tuple(bool(b[0][0, 0] > 0) for b in part[0]) for part in everywhere}) > 1
    counts = [len(part[0][0][0]) / EXAMPLES for part in everywhere]

    def by_hand(p: dict[str, Tensor], k: int) -> Tensor:
        each = [part[0][k] if k < STEPS else part[1] for part in everywhere]
        return torch.stack([w * branching(p, b) for w, b in zip(counts, each, strict=True)]).sum()

    whole = hft.data_parallel(branching)
    for strategy in (hft.Unroll(), hft.Unroll(checkpoint=1), hft.Forward()):
        found = hft.hypergradient(
            ADAM, whole, lambda p: whole(p, parts[1]), params(), parts[0], ("lr", "params"), strategy=strategy
        )
        expected = hft.hypergradient(
            ADAM, by_hand, lambda p: by_hand(p, STEPS), params(), range(STEPS), tuple(found[1])
        )
        assert apart(found, expected) <= 1e-12


@on("2 processes")
def an_empty_shard_of_a_loss_in_another_dtype(folder: Path) -> None:
    """Its process has the loss as the others have it; and nothing of a mask that is infinite."""

    def wide(p: dict[str, Tensor], batch: Batch, own: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(logits(p, batch[0], batch[3]).float().where(own["mask"].isfinite(), 0.0), batch[1])

    own = {"mask": torch.tensor([0.0, 0.0, -torch.inf])}
    found, expected = (
        torch.func.grad_and_value(f)(params(torch.bfloat16), b, own)
        for f, b in (
            (hft.data_parallel(wide), shard(batch(0, torch.bfloat16), WITH_AN_EMPTY_ONE)),
            (wide, batch(0, torch.bfloat16)),
        )
    )
    assert found[1].dtype == torch.float32
    assert (found[1] - expected[1]).abs() <= 2**-22 * expected[1]
    assert_the_same_everywhere(found)


@on("2 processes", "4 processes")
def decisions_are_agreed_on(folder: Path) -> None:
    """All keep what fits into the least memory of one; the largest shard decides whether graphs are small enough."""
    memory = 80_000 if dist.get_rank() == 0 else 10**9
    before, budget.SMALL = budget.SMALL, 110_000
    try:
        with counted() as names:
            found = [hypergradient(hft.Unroll(memory=memory), False), hypergradient(hft.Unroll(), False, (1, 2, 3))]
    finally:
        budget.SMALL = before
    assert all(other == names for other in gathered(names))
    assert apart(found, from_one(partial(alone, hft.Unroll())) * 2) <= 1e-12


@on("2 processes")
def points_of_sharded_params(folder: Path) -> None:
    """They, and what counts for memory=, are this process's part."""
    start = {"w": torch.randn(64, 32, dtype=torch.float64)}
    whole = hft.data_parallel(lambda p, x: (p["w"] * x).square().sum())
    run = hft.train(hft.adam(), whole, sharded(start), [torch.ones(32)] * 2)
    mine = 64 * 32 * 8 // dist.get_world_size()
    assert bytes_of(run.params, "cpu") == mine
    assert bytes_of((run.state.exp_avg, run.state.exp_avg_sq), "cpu") == 2 * mine


@on("2 processes")
def dropout_of_its_own(folder: Path) -> None:
    """Each process draws its own masks, and the same ones again where a step is made again."""

    def noisy(p: dict[str, Tensor], batch: Batch) -> Tensor:
        return F.cross_entropy(logits(p, F.dropout(batch[0], 0.3), batch[3]), batch[1])

    whole = hft.data_parallel(noisy)
    batches = [shard(batch(t)) for t in range(STEPS)]
    outer, found = hft.data_parallel(held_out), []
    for strategy in (hft.Unroll(), hft.Unroll(checkpoint=1), hft.Unroll(checkpoint="log"), hft.Forward()):
        torch.manual_seed(dist.get_rank())
        found.append(
            hft.hypergradient(ADAM, whole, lambda p: outer(p, batches[0]), params(), batches, "lr", strategy=strategy)
        )
    assert max(apart(x, found[0]) for x in found) <= 1e-12


# -- collectives -------------------------------------------------------------------------------------------------------


@contextmanager
def counted() -> Iterator[list[str]]:
    """The collectives of data-parallel losses inside: "value", "total" and "agree", in their order."""
    names: list[str] = []
    kept = {name: getattr(Team, name) for name in ("table", "total", "most")}

    def noting(name: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            names.append(name)
            return kept[name](*args)

        return call

    for name in kept:
        setattr(Team, name, noting(name))
    try:
        yield names
    finally:
        for name, method in kept.items():
            setattr(Team, name, method)


#: Strategy: values of the loss and sums of derivatives in K steps over lr and the loss's hparams. A gradient is one of
#: each, a Hessian product one sum.
COLLECTIVES = {
    "all graphs": lambda k: (k, 2 * k),
    "graphs of gradients": lambda k: (k, 2 * k),
    "every point": lambda k: (2 * k, 3 * k),
    "every second point": lambda k: (2 * k + k // 2, 3 * k + k // 2),
    "forward": lambda k: (k, 3 * k),  # a derivative in the loss's hparams is one more
}


@on("2 processes")
def few_collectives(folder: Path) -> None:
    """As the table says."""
    over = ("lr", "loss")
    for name, expected in COLLECTIVES.items():
        with counted() as names:
            hypergradient(STRATEGIES[name], False, over=over)
        # The outer loss: its value, and its gradient in the params.
        found = names.count("table") - 1, names.count("total") - 1
        assert found == expected(STEPS), name
        # Whether all have as many steps, the same outer loss, and whether their graphs are small.
        assert names.count("most") == 2 + (name == "all graphs"), name
    with counted() as names:
        torch.func.grad(hft.data_parallel(held_out))(params(), shard(batch(0)))
    assert names == ["table", "total"]
    with counted() as names, sdpa_kernel(SDPBackend.MATH):  # the fused one has no second derivative
        p = tree.map_tree(lambda x: x.requires_grad_(), params())
        value = hft.data_parallel(loss)(p, shard(batch(0)), tree.map_tree(lambda x: x.requires_grad_(), own()))
        slopes = torch.autograd.grad(value, list(p.values()), create_graph=True)
        torch.autograd.grad(slopes, list(p.values()), [torch.ones_like(x) for x in slopes])
    assert names == ["table", "total", "total"]


# -- bilevel, tpgm, towers ---------------------------------------------------------------------------------------------


def rounds(whole: bool, until: int, state: Any = None, by: Any = None, place: Any = plain) -> list[Any]:
    inner, outer, part = (loss, held_out, lambda b: b) if whole else (*map(hft.data_parallel, (loss, held_out)), shard)
    opt, by = hft.ftp(ADAM, params()), by or hft.adam(lr=0.05)
    found = hft.bilevel(
        opt, by, ("lr", "radius_lr", "loss"), inner, outer, place(params()), [part(batch(t)) for t in range(7)],
        [part(batch(50 + t)) for t in range(3)], inner_steps=4, outer_steps=until, constrain={"lr": "log"},
        hparams={**opt.hparams, "loss": own()}, state=state,
    )  # fmt: skip
    return list(found)


SAVED = "rounds.pt"


def compared(records: list[Any]) -> list[Any]:
    return [(torch.tensor(r.value, dtype=torch.float64), r.hypergradient, r.tuned, r.state.params) for r in records]


@on("2 processes", "4 processes")
def tuning(folder: Path) -> None:
    for by, place in ((hft.adam(lr=0.05), sharded), (torch.optim.Adam, plain)):
        found = compared(rounds(False, 3, by=by, place=place))
        expected = from_one(lambda by=by: leaves(compared(rounds(True, 3, by=by))))
        assert apart(found, expected) <= 1e-12
        assert_the_same_everywhere(found)


@on("2 processes")
def tuning_begins(folder: Path) -> None:
    state = rounds(False, 2)[-1].state
    if dist.get_rank() == 0:
        torch.save(tree.leaves(state), folder / SAVED)
    dist.barrier()


@on("4 processes", "1 process")
def tuning_goes_on(folder: Path) -> None:
    """From what another number of processes has saved."""
    _, rebuild = tree.flatten(rounds(True, 1)[0].state)
    state = rebuild(torch.load(folder / SAVED, weights_only=True))
    assert int(state.step) == 2
    assert apart(compared(rounds(dist.get_world_size() == 1, 4, state)), compared(rounds(True, 4)[2:])) <= 1e-12


@on("2 processes")
def radii_of_tpgm(folder: Path) -> None:
    moved, whole = tree.map_tree(lambda x: x + 0.3 * torch.sin(7 * x), params()), hft.data_parallel(held_out)
    expected = hft.tpgm(moved, params(), held_out, [batch(t) for t in range(4)])
    for place in (plain, sharded):
        found = hft.tpgm(place(moved), params(), whole, [shard(batch(t)) for t in range(4)])
        assert apart(found, expected) <= 1e-12
        assert_the_same_everywhere(found)


@on("2 processes")
def towers(folder: Path) -> None:
    tower = hft.hyper(hft.adam(lr=0.01), by=hft.hyper(hft.sgd(lr=1e-3), by=hft.sgd(lr=1e-5), over="lr"), over="lr")
    expected = hft.train(tower, held_out, params(), [batch(t) for t in range(STEPS)])
    for place in (plain, sharded):
        mine = [shard(batch(t)) for t in range(STEPS)]
        found = hft.train(tower, hft.data_parallel(held_out), place(params()), mine)
        assert apart(found, expected) <= 1e-12
        assert_the_same_everywhere(found)
