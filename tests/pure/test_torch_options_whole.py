"""The options of Adafactor and Muon against torch.optim, and of what torch does not have against the papers: every
two together, in float64, with gradients missing. Then what only these optimizers have."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import hyperopt_ftp as hft
from hyperopt_ftp import tree

from ..support import papers
from ..support.pairs import pairs
from ..support.problems import batches, central_differences, loss, start

F64 = torch.float64
STEPS = 6

ALL = {"matrix": (3, 4), "tall": (5, 2), "images": (2, 3, 2, 2), "late": (4,), "number": ()}
MATRICES = {"matrix": (3, 4), "tall": (5, 2), "late": (1, 3), "number": (1, 1)}

# A few dozen operations a step over 6 steps, each off by at most 1.1e-16 of values up to 4.
CLOSE = 5e-14


class Row(NamedTuple):
    make: Callable[..., hft.Optimizer]
    peer: Callable[..., torch.optim.Optimizer]
    options: dict[str, Any]
    own: dict[str, Any]  # options that the peer does not have
    shapes: dict[str, tuple[int, ...]]
    close: float

    def __str__(self) -> str:
        return "-".join([self.make.__name__, *(f"{k}={v}" for k, v in (self.options | self.own).items())])


def rows(
    make: Callable[..., Any],
    peer: Callable[..., Any],
    shapes: Any = ALL,
    close: float = CLOSE,
    own: Any = (),
    **choices: list[Any],
) -> list[Row]:
    """Choices in which every two options meet; without any, the defaults."""
    return [Row(make, peer, options, dict(own), shapes, close) for options in pairs(choices) or [{}]]


BOTH = [False, True]
UP = {"maximize": True}
AVERAGE: dict[str, list[Any]] = {
    "lr": [0.3], "weight_decay": [0, 0.1], "warmup_steps": [0, 3], "r": [0, 0.5], "weight_lr_power": [0, 2],
}  # fmt: skip
ADOPT: dict[str, list[Any]] = {
    "lr": [0.1], "betas": [(0.9, 0.9999), (0.5, 0.7)], "eps": [1e-6, 0.3], "weight_decay": [0, 0.1],
    "clip_power": [0.25, 0.0, None], "decoupled": BOTH,
}  # fmt: skip
# Sums of bfloat16 products may be added in another order: 2^-23 of values up to 2, of a step of 0.1 times a scale up
# to 1.6. A number that is rounded at another place is off by 2^-9.
BFLOAT16 = {"close": 1e-6, "own": {"ns_dtype": torch.bfloat16}}

ROWS = [
    *rows(hft.adafactor, torch.optim.Adafactor),
    *rows(
        hft.adafactor, torch.optim.Adafactor,
        lr=[0.1, 1.0], beta2_decay=[-0.8, -0.3], eps=[(None, 1e-3), (0.3, 0.9)], d=[1.0, 1.5], weight_decay=[0, 0.1],
        maximize=BOTH,
    ),
    *rows(hft.muon, torch.optim.Muon, MATRICES, **BFLOAT16),
    *rows(
        hft.muon, torch.optim.Muon, MATRICES, **BFLOAT16,
        lr=[0.1], weight_decay=[0, 0.1], momentum=[0.95, 0.5], nesterov=BOTH,
        adjust_lr_fn=[None, "original", "match_rms_adamw"],
    ),
    *rows(
        hft.muon, torch.optim.Muon, MATRICES, **BFLOAT16,
        lr=[0.1], ns_coefficients=[(2.0, -1.5, 0.5)], ns_steps=[1, 5], eps=[1e-7, 4.0],
    ),
    *rows(hft.muon, torch.optim.Muon, MATRICES, 1e-6, {**BFLOAT16["own"], **UP}, lr=[0.1]),
    *rows(hft.schedule_free_sgd, papers.schedule_free_sgd, momentum=[0.9, 0.0, 1.0], **AVERAGE),
    *rows(hft.schedule_free_sgd, papers.schedule_free_sgd, own=UP, lr=[0.3]),
    *rows(
        hft.schedule_free_adamw, papers.schedule_free_adamw, betas=[(0.9, 0.999), (0.5, 0.7)], eps=[1e-8, 1e-2],
        **AVERAGE,
    ),
    *rows(hft.schedule_free_adamw, papers.schedule_free_adamw, own=UP, lr=[0.3]),
    *rows(
        hft.adan, papers.adan,
        lr=[0.1], betas=[(0.98, 0.92, 0.99), (0.5, 0.0, 0.7)], eps=[1e-8, 1e-2], weight_decay=[0, 0.1],
    ),
    *rows(hft.adan, papers.adan, own=UP, lr=[0.1]),
    *rows(hft.adopt, papers.adopt, **ADOPT),
    *rows(hft.adopt, papers.adopt, own=UP, lr=[0.1]),
    *rows(hft.signum, papers.signum, lr=[0.1], momentum=[0.9, 0.0], weight_decay=[0, 0.1]),
    *rows(hft.signum, papers.signum, own=UP, lr=[0.1]),
]  # fmt: skip


def problem(shapes: dict[str, tuple[int, ...]]) -> tuple[dict[str, Tensor], list[dict[str, Tensor | None]]]:
    """Parameters and gradients; one has a zero in each, one is missing at first and later, one later on."""
    generator = torch.Generator().manual_seed(5)

    def some() -> dict[str, Any]:
        return {name: torch.randn(s, generator=generator, dtype=F64) for name, s in shapes.items()}

    params, grads = some(), [some() for _ in range(STEPS)]
    for g in grads:
        g["matrix"][0, 0] = 0
    for step, name in [(0, "late"), (3, "late"), (3, "number"), (4, "number")]:
        grads[step][name] = None
    return params, grads


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_options_are_those_of_torch_or_of_the_paper(row: Row):
    params, grads = problem(row.shapes)
    opt = row.make(**row.options, **row.own)
    state = opt.init(params)
    theirs = {name: torch.nn.Parameter(w.clone()) for name, w in params.items()}
    peer = row.peer(theirs.values(), **row.options)
    for g in grads:
        for name, p in theirs.items():
            way = g[name]
            p.grad = -way if way is not None and row.own.get("maximize") else way
        peer.step()
        params, state = opt.update(g, state, params)
        close = {"rtol": row.close, "atol": row.close}
        torch.testing.assert_close(params, {name: p.detach() for name, p in theirs.items()}, **close)
        for field, values in state._asdict().items():
            for mine, p in zip(tree.broadcast(values, params), theirs.values(), strict=True):
                if field in peer.state[p] and field != "step":
                    torch.testing.assert_close(mine, peer.state[p][field], **close)


# -- Adafactor ------------------------------------------------------------------------------------------------------


def test_adafactors_eps_is_the_second_number_or_a_pair():
    one, both = hft.adafactor(eps=(None, 0.1)), hft.adafactor(eps=(0.2, 0.1))
    assert one.hparams["eps"].item() == 0.1
    assert [x.item() for x in both.hparams["eps"]] == [0.2, 0.1]
    assert both.domains["eps"].parts == ("eps1", "eps2")
    for wrong in (1e-3, (1e-3,), None):
        with pytest.raises(ValueError, match=r"eps must be a pair \(eps1, eps2\), where eps1 may be None"):
            hft.adafactor(eps=wrong)
    with pytest.raises(ValueError, match=r"beta2_decay must lie in \[-inf, 0\], got 0.8"):
        hft.adafactor(beta2_decay=0.8)
    with pytest.raises(ValueError, match=r"d must lie in \[1, inf\), got 0.5"):
        hft.adafactor(d=0.5)


def test_adafactor_keeps_factors_and_nothing_as_large_as_a_matrix():
    params = {name: torch.ones(shape) for name, shape in ALL.items()}
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


def test_muon_is_given_matrices_alone():
    for params in ({"w": torch.zeros(2, 3), "b": torch.zeros(3)}, {"w": torch.zeros(2, 3), "b": torch.zeros(1, 2, 3)}):
        with pytest.raises(ValueError, match=r"'b' has the shape \(.*\); with hft.partition the matrices get muon"):
            hft.muon().init(params)
    with pytest.raises(TypeError, match="must be a pytree of tensors, but 'w' is a float"):
        hft.muon().init({"w": 1.0})
    w = torch.zeros(3, 0)
    assert hft.muon().update(w, hft.muon().init(w), w)[0].shape == (3, 0)


def test_muons_options():
    with pytest.raises(ValueError, match=r"ns_coefficients must be a tuple \(a, b, c\), got \(1.0, 2.0\)"):
        hft.muon(ns_coefficients=(1.0, 2.0))
    with pytest.raises(ValueError, match="ns_steps must be a number of Newton-Schulz steps >= 1, got 0"):
        hft.muon(ns_steps=0)
    with pytest.raises(ValueError, match="adjust_lr_fn must be one of 'original', 'match_rms_adamw', got 'match'"):
        hft.muon(adjust_lr_fn="match")
    with pytest.raises(TypeError, match="ns_dtype must be None or a floating-point dtype such as torch.bfloat16, got "):
        hft.muon(ns_dtype="bfloat16")
    with pytest.raises(ValueError, match=r"lr must lie in \[0, inf\), got -1.0"):
        hft.muon(lr=-1.0)
    with pytest.raises(TypeError, match="a pure optimizer gets no params here"):
        hft.muon(torch.nn.Linear(2, 2).parameters())


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


@pytest.mark.parametrize("make", [hft.schedule_free_sgd, hft.schedule_free_adamw])
@pytest.mark.parametrize("value", [-1, 2.0, True, None], ids=str)
def test_warmup_steps_are_a_number(make: Callable[..., hft.Optimizer], value: Any):
    with pytest.raises(ValueError, match="warmup_steps must be a number of updates >= 0, got"):
        make(warmup_steps=value)
