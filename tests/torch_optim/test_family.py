"""The anchored family as drop-in classes: against the transcriptions from the papers, and torch.optim's contract."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hyperopt_ftp as hft

from ..support.compare import equal
from ..support.draws import dtypes, gaps, methods, seeds
from ..support.family import CLASSES, FAMILY, HELD, WRONG_OPTIONS, Method, every_class
from ..support.trajectories import BASES, SHAPES, parameters, play, problem, tensors

STEPS = 12
NAMES = tuple(SHAPES)
bases = st.sampled_from(sorted(BASES))
missing = gaps(len(NAMES), STEPS)


def build(method: Method, params: dict, base: str = "adam", **rest):
    return method.around(BASES[base][1](params.items()), **rest)


def with_gaps(grads: list[dict], absent: set[tuple[int, int]]) -> list[dict]:
    return [{n: None if (t, NAMES.index(n)) in absent else x for n, x in g.items()} for t, g in enumerate(grads)]


@given(
    method=methods(HELD), base=bases, seed=seeds, absent=missing, foreach=st.sampled_from([None, False]),
    out=st.sets(st.sampled_from(NAMES), max_size=2), by_name=st.booleans(),
)  # fmt: skip
def test_a_class_is_its_pure_rule_and_what_is_left_out_its_base(method, base, seed, absent, foreach, out, by_name):
    """The rule is its transcription from the paper: test_anchored.py. What is left out is so to the last bit."""
    anchor, first, grads = problem(seed, STEPS)
    grads, params, twin = with_gaps(grads, absent), parameters(first), parameters(first)
    groups = [
        {"params": [(n, p) for n, p in params.items() if (n in out) == free], "foreach": foreach}
        | ({} if by_name else {"constrained": not free})
        for free in (True, False)
    ]
    opt = method.around(
        BASES[base][1]([g for g in groups if g["params"]]), anchor=tensors(anchor), exclude=[*out] if by_name else ()
    )
    free = BASES[base][1](twin.items())
    rule = method.held(BASES[base][0](), {n: w0 for n, w0 in tensors(anchor).items() if n not in out})
    weights, state = tensors(first), rule.init(tensors(first))
    for t, _ in zip(play(params, opt, grads), play(twin, free, grads), strict=True):
        weights, state = rule.update(
            {n: x if x is None else torch.tensor(x) for n, x in grads[t].items()}, state, weights
        )
        for name, p in params.items():
            # As in test_anchored.py: 12 steps of two dozen roundings, which a division makes 1e3 times as large.
            assert (p.detach() - weights[name]).abs().max() <= 1e-10
            assert name not in out or torch.equal(p, twin[name])
    assert not any("anchor" in opt.state[params[name]] for name in out if params[name] in opt.state)


@given(
    method=st.sampled_from([m for m in FAMILY if m.drop_in and m.zero]), base=bases, seed=seeds, absent=missing,
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)  # fmt: skip
def test_no_strength_is_the_base_bit_for_bit(method, base, seed, absent, dtype):
    _, first, grads = problem(seed, STEPS)
    held, free = parameters(first, dtype), parameters(first, dtype)
    opt, plain = method.around(BASES[base][1](held.values()), **method.zero), BASES[base][1](free.values())
    grads = with_gaps(grads, absent)
    for _ in zip(play(held, opt, grads), play(free, plain, grads), strict=True):
        assert equal(held.values(), free.values())


@given(method=methods(HELD), base=bases, seed=seeds, absent=missing, late=st.integers(0, 3), off=st.booleans())
def test_missing_gradients_move_nothing_and_do_not_disturb_others(method, base, seed, absent, late, off):
    """Of a bias that comes late, and of all now and then; from the anchor, and from off it."""
    anchor, first, grads = problem(seed, STEPS)
    params, alone = parameters(first), parameters(first)
    anchors = tensors(anchor) if off else {name: p.detach().clone() for name, p in params.items()}
    grads = with_gaps(grads, absent | {(t, NAMES.index("bias")) for t in range(late)})
    opt, before = build(method, params, base, anchor=anchors), tensors(first)
    for t in play(params, opt, grads):
        assert all(torch.equal(p, before[name]) for name, p in params.items() if grads[t][name] is None)
        assert t >= late or params["bias"] not in opt.state
        before = {name: p.detach().clone() for name, p in params.items()}
    for name in params:
        one = {name: alone[name]}
        list(play(one, build(method, one, base, anchor={name: anchors[name]}), [{name: g[name]} for g in grads]))
        assert torch.equal(params[name], alone[name])


MANY = [method for method in HELD if method.drop_in not in (hft.FTP, hft.MARSSP)]
every_many = pytest.mark.parametrize("method", MANY, ids=str)


def entry_of(where: str, value: float):
    """Puts it into two tensors at the last step."""

    def spoil(params) -> None:
        for p in (params[0], params[4]):
            getattr(p, where)[0, ..., 1] = value

    return spoil


def runs_of_both(method: Method, dtype: torch.dtype, steps: int, seed: int, spoil=None, **rest):
    """By the pure rule and by the execution on many tensors: odd shapes, two groups, one excluded."""
    shapes = [(4, 3), (5,), (), (0, 3), (2, 3, 2, 2), (3, 7), (1, 4, 1)]
    for foreach in (False, None):
        g = torch.Generator().manual_seed(seed)
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


@settings(max_examples=40)
@given(
    method=methods(MANY), seed=seeds, size=st.none() | st.integers(1, 20), zero=st.booleans(), dtype=dtypes,
    spoil=st.none() | st.builds(entry_of, st.sampled_from(["grad", "data"]), st.sampled_from([torch.nan, torch.inf])),
)  # fmt: skip
def test_many_tensors_at_once_are_the_rule(method, seed, size, zero, dtype, spoil):
    """Whole and cut into pieces of any size, also with entries that are not finite."""
    anchors = {"anchor": "zero"} if zero and dtype == torch.float64 else {}
    steps = 5 if dtype.itemsize > 2 else 3
    with pytest.MonkeyPatch.context() as patch:
        if size is not None:
            patch.setattr("hyperopt_ftp.torch_optim.execution.many.PIECE", size)
        assert_alike(list(runs_of_both(method, dtype, steps, seed, spoil, **anchors)), torch.finfo(dtype).eps)


@every_many
def test_what_cannot_be_cut_into_flat_pieces_goes_tensor_by_tensor(method: Method):
    apart = torch.nn.Parameter(torch.zeros(4, 6)[:, ::2])
    assert method.around(torch.optim.SGD([apart], lr=0.1)).execution == "single"
    assert method.around(torch.optim.SGD([torch.nn.Parameter(torch.zeros(4))], lr=0.1)).execution == "pieces"


@given(
    method=methods(HELD), seed=seeds, known=st.integers(0, 3), refused=st.sets(st.integers(0, 5)),
    base=st.sampled_from([torch.optim.SGD, torch.optim.Adam, torch.optim.NAdam]),
)  # fmt: skip
def test_a_base_that_refuses_its_step_leaves_all_as_it_was(method, seed, known, refused, base: Any):
    """Also the first one, of a base that knows something from before it was wrapped."""
    _, first, grads = problem(seed, STEPS)

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
            inner.refuses = refuses and t in refused
            if inner.refuses:
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


@given(method=methods(HELD), seed=seeds, dtype=st.sampled_from([torch.float16, torch.bfloat16]))
def test_16_bit_weights_keep_their_dtype_and_stay_finite(method: Method, seed: int, dtype: torch.dtype):
    _, first, grads = problem(seed, STEPS)
    params = parameters(first, dtype)
    opt = method.around(torch.optim.AdamW(params.items(), lr=0.05, eps=1e-4))
    for _ in play(params, opt, grads):
        assert all(p.dtype == dtype and p.isfinite().all() for p in params.values())
    ours = {key for state in opt.state.values() for key in state} - {"step", "exp_avg", "exp_avg_sq", "anchor"}
    assert {state[key].dtype for state in opt.state.values() for key in ours} == {torch.float32}


@given(method=methods(HELD), seed=seeds)
def test_maximize_is_a_step_along_minus_the_gradient(method: Method, seed: int):
    anchor, first, grads = problem(seed, STEPS)
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


@given(method=methods([*CLASSES.values()]), seed=seeds, old=dtypes, new=dtypes)
def test_weights_that_change_their_dtype_take_their_state_along(method, seed, old, new):
    _, first, grads = problem(seed, 6)
    params = parameters(first, old)
    opt = method.around(torch.optim.SGD(params.items(), lr=0.05))
    list(play(params, opt, grads[:3]))
    for p in params.values():
        p.data = p.data.to(new)
    list(play(params, opt, grads[3:]))
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


@given(method=methods(HELD), base=bases, seed=seeds)
def test_a_zero_anchor_is_that_of_zeros_given(method: Method, base: str, seed: int):
    _, first, grads = problem(seed, STEPS)
    params, twin = parameters(first), parameters(first)
    zeros = {name: torch.zeros_like(p) for name, p in twin.items()}
    opt, other = build(method, params, base, anchor="zero"), build(method, twin, base, anchor=zeros)
    for _ in zip(play(params, opt, grads), play(twin, other, grads), strict=True):
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
