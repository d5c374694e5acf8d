"""ADOPT, and RAdam beside it, before there is a second moment."""

from __future__ import annotations

import torch

import hyperopt_ftp as hft
from hyperopt_ftp.optimizers.by_rule import entry_rule

F64 = torch.float64


def f64(x: float) -> torch.Tensor:
    return torch.tensor(x, dtype=F64)


def test_the_first_update_of_adopt_has_finite_derivatives_where_its_number_is_traced():
    """The gradient over eps^2 is infinite, and not used."""
    opt, w = hft.adopt(), torch.ones(2, dtype=F64)
    rule, s = entry_rule(opt.update).rule, {"exp_avg": 0 * w, "exp_avg_sq": 0 * w}  # pyright: ignore[reportOptionalMemberAccess]
    slope = torch.func.grad(lambda eps: rule(w, 1e10 * w, s, {**opt.hparams, "eps": eps}, f64(1.0))[0].sum())
    assert slope(f64(1e-153)) == 0
