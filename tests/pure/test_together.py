"""Small tensors are updated as one: equal to each by itself, to the last bit."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import hyperopt_ftp as hft
from hyperopt_ftp import tree

from ..support.cases import BASES, Case

leafwise = sys.modules["hyperopt_ftp.optimizers.leafwise"]
F64, F32 = torch.float64, torch.float32


def mixed() -> dict[str, Tensor]:
    """Leaves that can be computed together, and some that cannot."""
    return {
        "matrix": torch.randn(3, 4, dtype=F64),
        "vector": torch.randn(5, dtype=F64),
        "number": torch.randn((), dtype=F64),
        "empty": torch.randn(0, 3, dtype=F64),
        "float32": torch.randn(6, dtype=F32),
        "float32 too": torch.randn(2, 3, dtype=F32),
        "bfloat16": torch.randn(4).bfloat16(),
        "bfloat16 too": torch.randn(2, 2).bfloat16(),
        "columns": torch.randn(4, 3, dtype=F64).T,
        "large": torch.randn(leafwise._SMALL + 1, dtype=F64),
        "parameter": torch.nn.Parameter(torch.randn(2, dtype=F64)).detach(),
    }


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tensors are computed as one, each time."""
    sizes: list[int] = []

    def spy(rule: Any, rows: Any, numbers: Any, run: Any = leafwise._as_one) -> Any:
        sizes.append(len(rows))
        return run(rule, rows, numbers)

    monkeypatch.setattr(leafwise, "_as_one", spy)
    return sizes


def steps(opt: hft.Optimizer, params: Any, count: int = 3) -> Any:
    state = opt.init(params)
    generator = torch.Generator().manual_seed(3)
    for _ in range(count):
        grads = tree.map_tree(lambda p: torch.randn(p.shape, generator=generator, dtype=F64).to(p.dtype), params)
        params, state = opt.update(grads, state, params)
    return params, state


@pytest.mark.parametrize("case", BASES, ids=str)
def test_together_and_alone_are_equal_to_the_last_bit(case: Case, packed: list[int], monkeypatch: pytest.MonkeyPatch):
    params = mixed()
    together = steps(case.build(), params)
    sizes = [n for n in (2, 2, 2, 2, 2, 2, 5, 5, 5) if 0 < case.joins <= n]
    assert sorted(packed) == sizes
    monkeypatch.setattr(leafwise, "_SMALL", -1)
    alone = steps(case.build(), params)
    assert len(packed) == len(sizes)
    for a, b in zip(tree.leaves(together), tree.leaves(alone), strict=True):
        assert torch.equal(a, b)
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())
    storages = [x.untyped_storage().data_ptr() for x in tree.leaves(together) if x.numel()]
    assert len(set(storages)) == len(storages)  # each can be saved, or written into, by itself


def test_hparams_of_ones_own_part_the_leaves(packed: list[int]):
    params = {name: torch.ones(2, dtype=F64) for name in "abcd"}
    opt, low, high = hft.signum(), torch.tensor(0.1, dtype=F64), torch.tensor(0.2, dtype=F64)
    lr = {"a": low, "b": high, "c": low, "d": torch.full((2,), 0.3, dtype=F64)}
    new, _ = opt.update(params, opt.init(params), params, {**opt.hparams, "lr": lr})
    assert packed == [2]
    assert [round(x[0].item(), 6) for x in new.values()] == [0.9, 0.8, 0.9, 0.7]


@pytest.mark.parametrize("in_dim", [0, 1])
def test_under_transforms(packed: list[int], in_dim: int):
    opt = hft.adam(lr=0.1, eps=1e-2)
    params = {"w": torch.randn(2, 3, 4, dtype=F64), "b": torch.randn(4, 3, dtype=F64)}

    def value(lr: Tensor, w: Tensor) -> Tensor:
        at = {"w": w, "b": params["b"][0]}
        return sum(p.square().sum() for p in steps(opt_at(lr), at)[0].values())

    def opt_at(lr: Tensor) -> Any:
        return opt._replace(update=lambda g, s, p, h=None: opt.update(g, s, p, {**opt.hparams, "lr": lr}))

    lrs = torch.tensor([0.1, 0.2], dtype=F64)
    slope = torch.func.grad(value)
    stacked = params["w"].movedim(0, in_dim)
    got = torch.func.vmap(slope, in_dims=(0, in_dim), randomness="same")(lrs, stacked)
    assert packed
    want = torch.stack([slope(lr, w) for lr, w in zip(lrs, params["w"], strict=True)])
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    forward = torch.func.jvp(lambda lr: value(lr, params["w"][0]), (lrs[0],), (torch.ones((), dtype=F64),))[1]
    torch.testing.assert_close(forward, want[0], rtol=1e-12, atol=1e-12)
