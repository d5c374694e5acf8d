"""The anchored family as drop-in classes: against the transcriptions from the papers, and torch.optim's contract."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch

import hyperopt_ftp as hft

from ..support.compare import equal
from ..support.family import CLASSES, FAMILY, HELD, WRONG_OPTIONS, Method, every_class, every_held
from ..support.trajectories import BASES, parameters, play, problem, tensors, trajectory


def build(method: Method, params: dict, base: str = "adam", **rest):
    return method.around(BASES[base][1](params.items()), **rest)


@every_held
@pytest.mark.parametrize("base", BASES)
def test_a_class_equals_its_transcription_from_the_paper(method: Method, base: str):
    anchor, first, grads = problem()
    params = parameters(first)
    opt = build(method, params, base, anchor=tensors(anchor))
    for t in play(params, opt, grads):
        expected = trajectory(method, base)[t] if t in (0, 10, 29) else None
        if expected:
            for name, p in params.items():
                assert np.abs(p.detach().numpy() - expected[name]).max() <= 1e-10


@pytest.mark.parametrize("method", [method for method in FAMILY if method.drop_in and method.zero], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_strength_is_the_base_bit_for_bit(method: Method, dtype: torch.dtype):
    _, first, grads = problem(steps=16)
    held, free = parameters(first, dtype), parameters(first, dtype)
    opt = method.around(torch.optim.Adam(held.values(), lr=0.05), **method.zero)
    base = torch.optim.Adam(free.values(), lr=0.05)
    for _ in zip(play(held, opt, grads), play(free, base, grads), strict=True):
        assert equal(held.values(), free.values())


@every_held
@pytest.mark.parametrize("by", ["name", "group"])
def test_a_head_is_left_free(method: Method, by: str):
    _, first, grads = problem(steps=16)
    free, params = parameters(first), parameters(first)
    list(play(free, BASES["adam"][1](free.values()), grads))
    groups = [{"params": [params["bias"]], "constrained": False}, {"params": [params["weight"], params["conv"]]}]
    opt = build(method, params, exclude="bias") if by == "name" else method.around(BASES["adam"][1](groups))
    list(play(params, opt, grads))
    assert torch.equal(params["bias"], free["bias"])
    assert not torch.equal(params["weight"], free["weight"])
    assert "anchor" not in opt.state[params["bias"]]


@every_held
@pytest.mark.parametrize("off", [False, True])
def test_missing_gradients_move_nothing_and_do_not_disturb_others(method: Method, off: bool):
    """From the anchor, and from off it."""
    anchor, first, grads = problem(steps=16)
    params, alone = parameters(first), parameters(first)
    anchors = tensors(anchor) if off else {name: p.detach().clone() for name, p in params.items()}
    gaps = [{**g, "bias": None if t < 3 or t % 2 else g["bias"]} for t, g in enumerate(grads)]
    opt = build(method, params, anchor=anchors)
    for t in play(params, opt, gaps):
        assert t >= 3 or torch.equal(params["bias"], torch.tensor(first["bias"]))
        assert t >= 3 or params["bias"] not in opt.state
    for name in params:
        one = {name: alone[name]}
        list(play(one, build(method, one, anchor={name: anchors[name]}), [{name: g[name]} for g in gaps]))
        assert torch.equal(params[name], alone[name])


MANY = [method for method in HELD if method.drop_in not in (hft.FTP, hft.MARSSP)]
every_many = pytest.mark.parametrize("method", MANY, ids=str)


def runs_of_both(method: Method, dtype: torch.dtype, steps: int, spoil=None, **rest):
    """By the pure rule and by the execution on many tensors: odd shapes, two groups, one excluded."""
    shapes = [(4, 3), (5,), (), (0, 3), (2, 3, 2, 2), (3, 7), (1, 4, 1)]
    for foreach in (False, None):
        g = torch.Generator().manual_seed(3)
        params = [torch.nn.Parameter(torch.randn(shape, generator=g).to(dtype)) for shape in shapes]
        params[4].data = params[4].data.to(memory_format=torch.channels_last)
        named = [(f"p{i}", p) for i, p in enumerate(params)]
        groups = [{"params": named[:4]}, {"params": named[4:], "lr": 0.02}]
        base = torch.optim.SGD(groups, lr=0.05, momentum=0.9, foreach=foreach)
        opt = method.around(base, exclude="p5", **rest)
        for t in range(steps):
            for i, p in enumerate(params):
                grad = torch.randn(p.shape, generator=g) * (1 if t % 3 else -1) + 0.3
                p.grad = None if (t, i) == (1, 0) else grad.to(p.dtype) * ((t, i) != (0, 1))  # at first one rests
            if spoil is not None and t == steps - 1:
                spoil(params)
            opt.step()
        assert opt.execution == ("pieces" if foreach is None else "single")
        yield opt, params


def assert_alike(sides, eps: float) -> None:
    """Weights and state to rounding, and the same entries are not finite."""
    (plain, expected), (many, found) = sides
    for p, q in zip(expected, found, strict=True):
        assert many.state[q].keys() == plain.state[p].keys()
        for x, y in [(p.detach(), q.detach()), *((plain.state[p][key], many.state[q][key]) for key in plain.state[p])]:
            if isinstance(x, torch.Tensor):
                assert (x.dtype, x.stride()) == (y.dtype, y.stride())
                assert torch.equal(x.isfinite(), y.isfinite())
                torch.testing.assert_close(y.nan_to_num(0, 0, 0), x.nan_to_num(0, 0, 0), rtol=64 * eps, atol=64 * eps)


@every_many
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [7, None])
def test_many_tensors_at_once_are_the_rule(method: Method, dtype: torch.dtype, size: int | None, monkeypatch):
    """Whole, and cut into pieces."""
    if size is not None:
        monkeypatch.setattr("hyperopt_ftp.torch_optim.execution.many.PIECE", size)
    anchors = {} if dtype != torch.float64 else {"anchor": "zero"}
    steps = 5 if dtype.itemsize > 2 else 3
    assert_alike(list(runs_of_both(method, dtype, steps, **anchors)), torch.finfo(dtype).eps)


@every_many
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["gradient", "weights"])
def test_many_tensors_with_entries_that_are_not_finite(method: Method, value: float, where: str):
    def spoil(params) -> None:
        for p in (params[0], params[4]):
            (p.grad if where == "gradient" else p.data)[0, ..., 1] = value

    assert_alike(list(runs_of_both(method, torch.float64, 3, spoil)), torch.finfo(torch.float64).eps)


@every_many
def test_what_cannot_be_cut_into_flat_pieces_goes_tensor_by_tensor(method: Method):
    apart = torch.nn.Parameter(torch.zeros(4, 6)[:, ::2])
    assert method.around(torch.optim.SGD([apart], lr=0.1)).execution == "single"
    assert method.around(torch.optim.SGD([torch.nn.Parameter(torch.zeros(4))], lr=0.1)).execution == "pieces"


@every_held
@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.Adam, torch.optim.NAdam])
@pytest.mark.parametrize("known", [0, 3], ids=["fresh", "begun"])
def test_a_base_that_refuses_its_step_leaves_all_as_it_was(method: Method, base: Any, known: int):
    """Also the first one, of a base that knows something from before it was wrapped."""
    _, first, grads = problem()

    class Refusing(base):
        refuses = False

        def step(self, closure=None):
            if self.refuses:
                raise ArithmeticError
            return super().step(closure)

    sides = []
    for refuses in (False, True):
        params = parameters(first)
        inner = Refusing(params.values(), lr=0.1, **({"momentum": 0.9} if base is torch.optim.SGD else {}))
        list(play(params, inner, grads[:known]))
        opt = method.around(inner)
        for t in range(known, 6):
            before = {p: dict(state) for p, state in opt.state.items()}
            inner.refuses = refuses
            if refuses:
                with pytest.raises(ArithmeticError):
                    list(play(params, opt, [grads[t + 5]]))
                assert opt.state.keys() == inner.state.keys() == before.keys()
                for p, state in before.items():
                    assert opt.state[p].keys() == state.keys()
                    assert all(opt.state[p][key] is value for key, value in state.items())
            inner.refuses = False
            list(play(params, opt, [grads[t]]))
        sides.append(list(params.values()))
    assert equal(*sides)


@every_held
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit_weights_keep_their_dtype_and_stay_finite(method: Method, dtype: torch.dtype):
    _, first, grads = problem()
    params = parameters(first, dtype)
    opt = method.around(torch.optim.AdamW(params.items(), lr=0.05, eps=1e-4))
    for _ in play(params, opt, grads):
        assert all(p.dtype == dtype and p.isfinite().all() for p in params.values())
    ours = {key for state in opt.state.values() for key in state} - {"step", "exp_avg", "exp_avg_sq", "anchor"}
    assert {state[key].dtype for state in opt.state.values() for key in ours} == {torch.float32}


@every_held
def test_maximize_is_a_step_along_minus_the_gradient(method: Method):
    anchor, first, grads = problem(steps=16)
    up, down = parameters(first), parameters(first)
    climbs = method.around(torch.optim.Adam(up.items(), lr=0.05, maximize=True), anchor=tensors(anchor))
    opt = method.around(torch.optim.Adam(down.items(), lr=0.05), anchor=tensors(anchor))
    turned = [{name: -x for name, x in g.items()} for g in grads]
    for _ in zip(play(up, climbs, turned), play(down, opt, grads), strict=True):
        assert equal(up.values(), down.values())


def test_every_class_around_an_optimizer_has_a_row():
    classes = [x for x in vars(hft).values() if isinstance(x, type) and issubclass(x, torch.optim.Optimizer)]
    around = {x for x in classes if "base" in inspect.signature(x).parameters}
    assert len(around) >= 7
    assert around == {method.drop_in for method in FAMILY if method.drop_in}


@pytest.mark.parametrize("method", [method for method in FAMILY if method.drop_in], ids=str)
def test_a_class_has_the_defaults_of_its_rule(method: Method):
    rule, own = (inspect.signature(x).parameters for x in (method.pure, method.drop_in or method.pure))
    shared = rule.keys() & own.keys() - {"anchor", "radius"}  # which a class takes from its first step, or has none of
    assert {name: own[name].default for name in shared} == {name: rule[name].default for name in shared}


def test_a_class_of_ones_own_loads_what_its_parent_made():
    class Mine(hft.FTPAdamW):
        pass

    w = torch.nn.Parameter(torch.ones(2))
    opt = hft.FTPAdamW([w])
    w.grad = torch.ones(2)
    opt.step()
    mine = Mine([torch.nn.Parameter(torch.ones(2))])
    mine.load_state_dict(opt.state_dict())
    hft.FTPAdamW([torch.nn.Parameter(torch.ones(2))]).load_state_dict(mine.state_dict())


@every_class
def test_a_base_that_cannot_begin_leaves_no_state(name: str):
    """torch's Adam raises where it makes its state, between that of two groups."""
    a, b = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    opt = CLASSES[name].around(torch.optim.AdamW([{"params": [a]}, {"params": [b]}], lr=0.1, foreach=True))
    opt.param_groups[1]["lr"] = torch.tensor(0.1)
    a.grad, b.grad = torch.ones(2), torch.ones(2)
    with pytest.raises(RuntimeError, match="lr as a Tensor"):
        opt.step()
    if CLASSES[name] in HELD:  # elsewhere the base itself has moved the first group
        assert torch.equal(a, torch.ones(2))
    assert not any("anchor" in state or "direction" in state for state in opt.state.values())


@every_class
@pytest.mark.parametrize("new", [torch.float64, torch.float16], ids=str)
def test_weights_that_change_their_dtype_take_their_state_along(name: str, new: torch.dtype):
    _, first, grads = problem()
    params = parameters(first, torch.float32)
    opt = CLASSES[name].around(torch.optim.SGD(params.items(), lr=0.05))
    list(play(params, opt, grads[:3]))
    for p in params.values():
        p.data = p.data.to(new)
    list(play(params, opt, grads[3:6]))
    wide = torch.float64 if new == torch.float64 else torch.float32
    for state in opt.state.values():
        kept = {key: x.dtype for key, x in state.items() if key != "anchor" and not key.endswith("step")}
        assert set(kept.values()) <= {wide}
    assert all(p.dtype == new and p.isfinite().all() for p in params.values())


def test_a_zero_anchor_takes_no_memory():
    _, first, grads = problem()
    params = parameters(first)
    opt = hft.SPD(torch.optim.SGD(params.items(), lr=0.1), anchor="zero")
    list(play(params, opt, grads[:3]))
    assert all(sum(x.numel() for x in s.values() if isinstance(x, torch.Tensor)) <= 1 for s in opt.state.values())
    assert all(torch.equal(s["anchor_step"], torch.tensor(3.0)) for s in opt.state.values())


@every_held
def test_a_zero_anchor_is_that_of_zeros_given(method: Method):
    _, first, grads = problem(steps=16)
    params, twin = parameters(first), parameters(first)
    zeros = {name: torch.zeros_like(p) for name, p in twin.items()}
    opt, given = build(method, params, anchor="zero"), build(method, twin, anchor=zeros)
    for _ in zip(play(params, opt, grads), play(twin, given, grads), strict=True):
        assert equal(params.values(), twin.values())


def test_omegas_are_shown_by_name():
    _, first, grads = problem()
    params = parameters(first)
    opt = hft.DiGraP(torch.optim.SGD(params.items(), lr=0.05), omega_lr=0.2, exclude="bias")
    assert opt.omegas() == {}
    list(play(params, opt, grads))
    assert opt.omegas().keys() == {"weight", "conv"}
    assert all(0 <= omega <= 1 for omega in opt.omegas().values())
    assert max(opt.omegas().values()) > 0


# -- wrong input ------------------------------------------------------------------------------------------------------

W = torch.nn.Parameter(torch.zeros(2, 2))
NO_NUMBERS = [([1.0], TypeError, "be a number"), (torch.zeros(1), ValueError, "be a number")]


def sgd() -> torch.optim.Optimizer:
    return torch.optim.SGD([("w", W)], lr=0.1)


@every_class
def test_each_option_has_its_domain(name: str):
    for option, value in CLASSES[name].options.items():
        # A pure rule takes a number for each tensor, a class does not.
        for wrong, error, text in [*WRONG_OPTIONS[type(value)], *(NO_NUMBERS if type(value) is float else [])]:
            with pytest.raises(error, match=f"{option} must {text}"):
                CLASSES[name].around(sgd(), **{option: wrong})


def test_a_class_goes_around_no_class_of_the_family():
    with pytest.raises(TypeError, match="SPD wraps a torch.optim.Optimizer .* got L2SP"):
        hft.SPD(hft.L2SP(sgd()))


def test_a_radius_of_mars_sp_holds_and_grows_back_after_small_steps():
    """The radius in effect is clipped at the largest row; that must not become the limit of the next step."""
    w, still = torch.nn.Parameter(torch.zeros(1, 2)), torch.nn.Parameter(torch.zeros(1, 2))
    opt, none = (hft.MARSSP(torch.optim.SGD([p], lr=1.0), radius=r) for p, r in ((w, 1.0), (still, 0.0)))
    for size, expected in ((0.1, 0.1), (0.5, 0.6), (5.0, 1.0)):
        w.grad, still.grad = (torch.tensor([[-size, 0.0]]) for _ in range(2))
        opt.step()
        none.step()
        assert w[0, 0].item() == pytest.approx(expected, abs=1e-6)
        assert not still.any()


@pytest.mark.parametrize("foreach", [None, True, False])
def test_each_group_of_mars_sp_has_its_radius(foreach):
    near, far = (torch.nn.Parameter(torch.zeros(1, 2)) for _ in range(2))
    groups = [{"params": [near], "radius": 0.1}, {"params": [far], "radius": 1.0}]
    opt = hft.MARSSP(torch.optim.SGD(groups, lr=10.0, foreach=foreach), radius=0.5)
    near.grad, far.grad = (torch.tensor([[-1.0, 0.0]]) for _ in range(2))
    opt.step()
    assert (near[0, 0].item(), far[0, 0].item()) == pytest.approx((0.1, 1.0), abs=1e-6)
