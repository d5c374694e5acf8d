"""What properties draw: shapes, numbers by a seed, which gradients are missing, methods with other numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from hyperopt_ftp.testing import strategies

from .family import Method

seeds = st.integers(0, 2**16)
shapes = strategies.shapes()
dtypes = st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16])
several = st.lists(shapes, min_size=1, max_size=4)


def tenths(low: int, high: int) -> st.SearchStrategy[float]:
    """Numbers of one digit: small and large ones stay apart, and none is nearly another."""
    return st.integers(low, high).map(lambda n: n / 10)


def gaps(tensors: int, steps: int) -> st.SearchStrategy[set[tuple[int, int]]]:
    """Steps and tensors without a gradient."""
    return st.sets(st.tuples(st.integers(0, steps - 1), st.integers(0, tensors - 1)), max_size=steps)


def normal(seed: int, sizes: Sequence[Sequence[int]]) -> list[Tensor]:
    """Float64 tensors of these shapes."""
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(tuple(size), generator=g, dtype=torch.float64) for size in sizes]


#: Values at which each method moves a run of some steps, and no step is steep.
NUMBERS: dict[str, st.SearchStrategy[float]] = {
    "strength": tenths(3, 15), "rate": tenths(1, 5), "midpoint": tenths(50, 150), "radius": tenths(2, 6),
    "radius_lr": tenths(1, 5).map(lambda x: x / 5), "kappa": tenths(1, 10), "omega": tenths(3, 10),
    "omega_lr": tenths(1, 4),
}  # fmt: skip


@st.composite
def methods(draw: Any, rows: Sequence[Method]) -> Method:
    """One of the rows, with numbers of its own."""
    method = draw(st.sampled_from(rows))
    return replace(method, options={n: draw(NUMBERS[n]) if n in NUMBERS else x for n, x in method.options.items()})
