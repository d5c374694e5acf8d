"""What some optimizers alone have, and what changes with the number of updates; test_torch_options.py has the options.

Where a rule changes in time, it is right on both sides, with no NaN from the side that is not taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torchopt

import hyperopt_ftp as hft
from hyperopt_ftp import tree
from hyperopt_ftp.optimizers.by_rule import entry_rule

from ..support.problems import batches, central_differences, loss, start, train

F64 = torch.float64


def f64(x: float) -> torch.Tensor:
    return torch.tensor(x, dtype=F64)


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


# -- before there is a second moment ---------------------------------------------------------------------------------


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


@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=str)
def test_adam_without_eps_is_torchs_and_leaves_a_dead_unit_where_it_is(dtype: torch.dtype):
    """Where torch divides 0 by 0."""
    opt, w = hft.adam(lr=0.1, eps=0.0), torch.ones(5, dtype=dtype)
    p, state = torch.nn.Parameter(w.clone()), opt.init(w)
    peer = torch.optim.Adam([p], lr=0.1, eps=0.0)
    for _ in range(4):
        p.grad = torch.randn(5, dtype=dtype) * torch.tensor([0, 1, 1, 1, 1], dtype=dtype)
        peer.step()
        w, state = opt.update(p.grad, state, w)
    assert (w[0].item(), p[0].isnan().item()) == (1, True)
    close = 32 * torch.finfo(dtype).eps  # a dozen roundings a step
    torch.testing.assert_close(w[1:], p.detach()[1:], rtol=close, atol=close)


def test_the_first_update_of_adopt_has_finite_derivatives_where_its_number_is_traced():
    """The gradient over eps^2 is infinite, and not used."""
    opt, w = hft.adopt(), torch.ones(2, dtype=F64)
    rule, s = entry_rule(opt.update).rule, {"exp_avg": 0 * w, "exp_avg_sq": 0 * w}  # pyright: ignore[reportOptionalMemberAccess]
    slope = torch.func.grad(lambda eps: rule(w, 1e10 * w, s, {**opt.hparams, "eps": eps}, f64(1.0))[0].sum())
    assert slope(f64(1e-153)) == 0


def test_radam_with_and_without_rectification_in_one_vmap():
    """rho in update 7: 4.4 at 0.7, 6.6 at 0.95."""
    opt, b2s = hft.radam(lr=0.1, eps=1e-2), torch.tensor([0.0, 0.7, 0.95, 0.999], dtype=F64)
    params, data = start(), batches(7)

    def final(b2):
        b1 = torch.tensor(0.9, dtype=F64)
        return loss(train(opt, {**opt.hparams, "betas": (b1, b2)}, params, data)[0], data[0])

    for f in (final, torch.func.grad(final)):
        alone = torch.stack([f(b2) for b2 in b2s])
        torch.testing.assert_close(torch.func.vmap(f)(b2s), alone, rtol=1e-12, atol=1e-13)
    assert (alone != 0).tolist() == [False, False, True, True]


# -- ASGD and Rprop ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t0", [0.3, 1.5, 2.6, 9.0])
def test_the_average_of_asgd_is_differentiable_in_everything(t0: float):
    opt = hft.asgd(lr=0.1, lambd=0.3, alpha=0.6, t0=t0)

    def outer(hparams):
        _, state = train(opt, hparams, start(), batches(5))
        return loss(state.ax, batches(1)[0] + 0.3)

    got, want = torch.func.grad(outer)(opt.hparams), central_differences(outer, opt.hparams)
    torch.testing.assert_close(torch.stack(tree.leaves(got)), torch.stack(want), rtol=1e-6, atol=1e-8)
    assert (got["t0"] != 0) == (t0 < 3)  # 4 updates are done before the last: the average begins where n - t0 > 1


def test_a_learning_rate_of_asgd_acts_in_the_update_that_gets_it():
    w, g = {"w": torch.ones(3, dtype=F64)}, {"w": torch.full((3,), 2.0, dtype=F64)}
    opt = hft.asgd(lr=0.1, lambd=0.0)
    params, state = opt.update(g, opt.init(w), w)
    slope = torch.func.grad(lambda lr: opt.update(g, state, params, {**opt.hparams, "lr": lr})[0]["w"].sum())
    assert slope(f64(0.5)) == -6.0
    moved, _ = opt.update(g, state, params, {**opt.hparams, "lr": f64(0.5)})
    torch.testing.assert_close(params["w"] - moved["w"], torch.ones(3, dtype=F64), rtol=1e-15, atol=1e-15)


def test_rprop_reads_its_learning_rate_at_first_only_and_its_bounds_always():
    opt, w = hft.rprop(lr=0.1, step_sizes=(1e-6, 0.13)), f64(0.0)

    def final(hparams, grads):
        params, state = w, opt.init(w, hparams)
        for g in grads:
            params, state = opt.update(f64(g), state, params, hparams)
        return params

    # Step sizes: 0.1, 0.12, 0.06 without a step, 0.06; then the same from the bound.
    slopes = torch.func.grad(final)(opt.hparams, [1.0, 1.0, -1.0, -1.0])
    assert slopes["lr"].item() == pytest.approx(-1 - 1.2 + 1.2 * 0.5, abs=1e-15)
    assert [x.item() for x in slopes["etas"]] == pytest.approx([0.1 * 1.2, -0.1 + 0.1 * 0.5], abs=1e-15)
    assert [x.item() for x in slopes["step_sizes"]] == [0, 0]
    slopes = torch.func.grad(final)(opt.hparams, [1.0, 1.0, 1.0])  # 0.1, 0.12, 0.13
    assert [slopes["lr"].item(), slopes["step_sizes"][1].item()] == pytest.approx([-2.2, -1], abs=1e-15)


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


# -- RMSprop ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nesterov", [False, True])
def test_rmsprop_with_nesterov_is_that_of_torchopt(nesterov: bool):
    """torch has none."""
    options = {"lr": 1e-2, "alpha": 0.9, "eps": 1e-4, "momentum": 0.9, "centered": True, "weight_decay": 1e-2}
    ours, theirs = (make(**options, nesterov=nesterov) for make in (hft.rmsprop, torchopt.rmsprop))
    w = p = start()
    state, other = ours.init(w), theirs.init(p)
    for x in batches(4):
        w, state = ours.update(torch.func.grad(loss)(w, x), state, w)
        updates, other = theirs.update(torch.func.grad(loss)(p, x), other, params=p, inplace=False)
        p = torchopt.apply_updates(p, updates, inplace=False)
    torch.testing.assert_close(w, p, rtol=0, atol=1e-13)
