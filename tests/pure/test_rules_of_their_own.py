"""What Adafactor, Muon, ADOPT and the schedule-free optimizers alone have; test_torch_options.py has their options."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

import hyperopt_ftp as hft
from hyperopt_ftp import tree

from ..support.problems import batches, central_differences, loss, start

F64 = torch.float64

# -- Adafactor ------------------------------------------------------------------------------------------------------


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


# -- Muon -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 4), (5, 2), (1, 3), (3, 3)], ids=str)
@pytest.mark.parametrize("coefficients", [(3.4445, -4.775, 2.0315), (2.0, -1.5, 0.5)], ids=str)
def test_muon_maps_singular_values_and_keeps_their_vectors(shape: tuple[int, ...], coefficients: tuple[float, ...]):
    g = torch.randn(shape, dtype=F64)
    u, s, vh = torch.linalg.svd(g, full_matrices=False)
    s = s / s.square().sum().sqrt()
    a, b, c = coefficients
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    opt = hft.muon(lr=1.0, weight_decay=0.0, ns_coefficients=coefficients, adjust_lr_fn="match_rms_adamw")
    w = torch.zeros(shape, dtype=F64)
    new, _ = opt.update(g, opt.init(w), w)
    want = -0.2 * math.sqrt(max(shape)) * (u * s) @ vh
    # A rounding of 1e-16 grows by at most 3.5 in each of five steps.
    torch.testing.assert_close(new, want, rtol=1e-12, atol=1e-12)


def test_muon_is_not_rounded_by_default():
    w = torch.zeros(3, 4, dtype=F64)
    g = torch.randn(3, 4, dtype=F64)
    full, rounded = (
        opt.update(g, opt.init(w), w)[0] for opt in (hft.muon(lr=1), hft.muon(lr=1, ns_dtype=torch.bfloat16))
    )
    assert 1e-4 < (full - rounded).abs().max() < 1e-1
    assert rounded.dtype == F64


def test_muon_has_the_hypergradients_of_its_defaults():
    opt, w = hft.muon(lr=0.1), start()["w"]
    rows = batches(3)

    def outer(hparams):
        p, state = w, opt.init(w)
        for x in rows:
            p, state = opt.update(torch.func.grad(lambda p, x=x: loss({"w": p, "b": 0}, x))(p), state, p, hparams)
        return loss({"w": p, "b": 0}, rows[0] + 0.3)

    got = torch.stack(tree.leaves(torch.func.grad(outer)(opt.hparams)))
    want = torch.stack(central_differences(outer, opt.hparams, 1e-5))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-7 * want.abs().max().item())


# -- ADOPT ----------------------------------------------------------------------------------------------------------


def test_adopts_first_update_has_a_derivative_without_eps():
    """It divides by nothing, since there is no second moment yet."""
    opt = hft.adopt(lr=0.1, betas=(0.5, 0.5), eps=0.0)
    w = torch.ones(2, dtype=F64)

    def run(hparams):
        p, state = w, opt.init(w)
        for _ in range(3):
            p, state = opt.update(p, state, p, hparams)
        return p.sum()

    assert all(x.isfinite() for x in tree.leaves(torch.func.grad(run)(opt.hparams)))


# -- schedule-free --------------------------------------------------------------------------------------------------

FREE = [hft.schedule_free_sgd(lr=0.3, momentum=0.7), hft.schedule_free_adamw(lr=0.1, betas=(0.7, 0.9))]


@pytest.mark.parametrize("opt", FREE, ids=["sgd", "adamw"])
def test_the_average_is_in_the_state_and_the_params_lie_between(opt: hft.Optimizer):
    params = start()
    state = opt.init(params)
    assert tree.structure(state.average) == tree.structure(params)
    seen = []
    for x in batches(4):
        params, state = opt.update(torch.func.grad(loss)(params, x), state, params)
        seen.append(state.z)
    for name, y in params.items():
        mean = torch.stack([z[name] for z in seen]).mean(0)  # no warm-up: equal weights
        torch.testing.assert_close(state.average[name], mean, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(y, 0.3 * state.z[name] + 0.7 * mean, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("make", [hft.schedule_free_sgd, hft.schedule_free_adamw])
def test_a_learning_rate_of_0_has_no_average_yet(make: Callable[..., hft.Optimizer]):
    opt = make(lr=0.0)

    def run(hparams):
        w = torch.ones(2, dtype=F64)
        state = opt.init(w)
        for _ in range(2):
            w, state = opt.update(torch.ones(2, dtype=F64), state, w, hparams)
        return w.sum()

    assert run(opt.hparams) == 2
    assert all(x.isfinite() for x in tree.leaves(torch.func.grad(run)(opt.hparams)))
