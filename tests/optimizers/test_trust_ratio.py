"""LAMB and LARS where a norm is 0."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import hyperopt_ftp as hft

F64 = torch.float64
#: Each with the optimizer that it is where weights are 0.
LIMITS = {
    "lamb": (lambda lr: hft.lamb(lr, eps=1e-2), lambda lr: hft.adam(lr, eps=1e-2)),
    "lars": (lambda lr: hft.lars(lr), lambda lr: hft.sgd(lr)),
}


@pytest.mark.parametrize(("make", "limit"), LIMITS.values(), ids=LIMITS)
def test_zeros_move_as_without_a_ratio(make: Callable[..., hft.Optimizer], limit: Callable[..., hft.Optimizer]):
    w, g = torch.zeros(3, dtype=F64), torch.tensor([1.0, -2.0, 0.0], dtype=F64)
    ends = [opt.update(g, opt.init(w), w)[0] for opt in (make(0.1), limit(0.1))]
    torch.testing.assert_close(*ends, rtol=1e-14, atol=0)
    assert ends[0].abs().sum() > 0


@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=str)
@pytest.mark.parametrize("zero", ["weights", "gradient", "both"])
@pytest.mark.parametrize(("make", "limit"), LIMITS.values(), ids=LIMITS)
def test_derivatives_to_second_order_are_finite_where_a_norm_is_0(make, limit, zero: str, dtype: torch.dtype):
    w = torch.full((3,), 0.0 if zero != "gradient" else 10.0, dtype=dtype)
    g = torch.full((3,), 0.0 if zero != "weights" else 10.0, dtype=dtype)

    def end(lr: Tensor, w: Tensor, g: Tensor) -> Tensor:
        opt = make(lr)
        new, state = opt.update(g, opt.init(w), w)
        return (opt.update(g, state, new)[0] - 1).square().sum()

    inputs = (torch.tensor(0.1, dtype=dtype), w, g)
    assert all(x.isfinite().all() for x in torch.func.grad(end, argnums=(0, 1, 2))(*inputs))
    slopes = torch.func.hessian(lambda lr, w: end(lr, w, g), argnums=(0, 1))(*inputs[:2])
    assert all(x.isfinite().all() for row in slopes for x in row)


def test_a_gradient_whose_square_is_0_in_float32_has_a_norm():
    """LARS does not depend on the size of the gradient."""
    w, g = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 4.0])
    opt = hft.lars(lr=1.0, trust_coefficient=0.1)
    small, large = (opt.update(g * scale, opt.init(w), w)[0] for scale in (1e-24, 1.0))
    torch.testing.assert_close(small, large, rtol=4 * torch.finfo(torch.float32).eps, atol=0)
