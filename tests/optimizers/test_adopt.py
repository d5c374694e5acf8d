"""ADOPT, and RAdam beside it, before there is a second moment."""

from __future__ import annotations

import pytest
import torch

import hyperopt_ftp as hft
from hyperopt_ftp import tree
from hyperopt_ftp.optimizers.by_rule import entry_rule

F64 = torch.float64


def f64(x: float) -> torch.Tensor:
    return torch.tensor(x, dtype=F64)


@pytest.mark.parametrize(
    ("opt", "steps", "gradient"),
    [
        # It divides by nothing in its first update, and later by a moment that is not 0.
        (hft.adopt(lr=0.1, betas=(0.5, 0.5), eps=0.0), 3, 1.0),
        # Before it is rectified, it does not look at the moment, not even where that is 0, and so is eps.
        (hft.radam(lr=0.1, eps=0.0), 5, 0.0),
    ],
    ids=["adopt", "radam"],
)
def test_derivatives_are_finite_without_eps(opt: hft.Optimizer, steps: int, gradient: float):
    def run(hparams):
        p, state = torch.ones(2, dtype=F64), opt.init(torch.ones(2, dtype=F64))
        for _ in range(steps):
            p, state = opt.update(gradient * p, state, p, hparams)
        return p.sum()

    assert all(x.isfinite() for x in tree.leaves(torch.func.grad(run)(opt.hparams)))


def test_the_first_update_of_adopt_has_finite_derivatives_where_its_number_is_traced():
    """The gradient over eps^2 is infinite, and not used."""
    opt, w = hft.adopt(), torch.ones(2, dtype=F64)
    rule, s = entry_rule(opt.update).rule, {"exp_avg": 0 * w, "exp_avg_sq": 0 * w}  # pyright: ignore[reportOptionalMemberAccess]
    slope = torch.func.grad(lambda eps: rule(w, 1e10 * w, s, {**opt.hparams, "eps": eps}, f64(1.0))[0].sum())
    assert slope(f64(1e-153)) == 0
