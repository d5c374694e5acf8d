"""Adafactor keeps factors, and computes in a precision that fits its eps."""

from __future__ import annotations

import pytest
import torch

import hyperopt_ftp as hft
from hyperopt_ftp import tree

F64 = torch.float64


def test_adafactor_keeps_factors_and_nothing_as_large_as_a_matrix():
    layers = {"matrix": (3, 4), "tall": (5, 2), "images": (2, 3, 2, 2), "late": (4,), "number": ()}
    params = {name: torch.ones(shape) for name, shape in layers.items()}
    state = hft.adafactor().init(params)
    shapes = {field: {k: tuple(x.shape) for k, x in getattr(state, field).items()} for field in state._fields[1:]}
    none = (0,)
    rows = {"matrix": (3, 1), "tall": (5, 1), "images": (2, 3, 2, 1), "late": none, "number": none}
    columns = {"matrix": (1, 4), "tall": (1, 2), "images": (2, 3, 1, 2), "late": none, "number": none}
    variance = {"matrix": none, "tall": none, "images": none, "late": (4,), "number": ()}
    assert shapes == {"row_var": rows, "col_var": columns, "variance": variance}


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 3)], ids=str)
def test_a_tensor_of_no_entries_has_finite_factors(shape: tuple[int, ...]):
    opt, w = hft.adafactor(), torch.zeros(shape)
    for _ in range(2):
        w, state = opt.update(torch.zeros(shape), opt.init(w), w)
        assert all(x.isfinite().all() for x in tree.leaves(state))


def test_adafactors_eps1_is_that_of_the_precision_which_is_computed_in():
    """V is eps1^2 where gradients are smaller: U = g / eps1."""
    for dtype, eps in ((F64, torch.finfo(F64).eps), (torch.float32, torch.finfo(torch.float32).eps)):
        opt, w = hft.adafactor(lr=1.0, eps=(None, 1.0)), torch.zeros(1, dtype=dtype)
        new, _ = opt.update(torch.full_like(w, eps / 4), opt.init(w), w)
        assert new.item() == -0.25
    w = torch.zeros(1, dtype=torch.bfloat16)
    new, _ = opt.update(torch.full_like(w, torch.finfo(torch.float32).eps / 4), opt.init(w), w)
    assert new.item() == -0.25
