"""Every pure optimizer times every property (the table is in tests/support/cases.py)."""

from __future__ import annotations

import inspect

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import hyperopt_ftp as hft
from hyperopt_ftp import testing, tree

from ..support.cases import BASES, CASES, COMBINED, Case
from ..support.compare import float64_by_default
from ..support.problems import batches, largest_difference, loss, start

every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_base = pytest.mark.parametrize("case", BASES, ids=str)

# Rounding of a dozen operations a step over 10 steps of values of order 1.
CLOSE = 1e-13


@every_case
@pytest.mark.parametrize("check", testing.CHECKS)
def test_what_every_optimizer_promises(case: Case, check: str):
    if (check == "derivatives" and not case.smooth) or (check == "gaps" and not case.gaps):
        pytest.skip("the rule jumps there" if check == "derivatives" else "a gradient that is None is refused")
    if check == "apart" and case not in BASES:
        pytest.skip("some combinators need all gradients")
    more = {"steps": case.steps} if check == "derivatives" else {}
    found = testing.CHECKS[check](case.build(), **more)
    if check == "derivatives":
        assert all((x == 0).all() for name in case.flat for x in tree.leaves(found[name]))


@every_base
@given(seed=st.integers(0, 2**16), shape=st.lists(st.integers(0, 4), max_size=4), steps=st.integers(1, 6))
def test_equals_torch_optim_in_float64(case: Case, seed: int, shape: list[int], steps: int):
    assume(not (case.whole and 0 in shape))  # of which torch cannot take a mean
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(shape, generator=generator, dtype=torch.float64)
    grads = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(steps)]
    assert case.peer is not None
    p = torch.nn.Parameter(w.clone())
    peer, opt = case.peer([p], **case.kwargs), case.build()
    state = opt.init(w)
    for g in grads:
        p.grad = g.clone()
        with float64_by_default():  # the dtype in which torch keeps the numbers of a tensor
            peer.step()
        w, state = opt.update(g, state, w)
        torch.testing.assert_close(w, p.detach(), rtol=CLOSE, atol=CLOSE)


class Bounds(TorchDispatchMode):
    """Refuses what a GPU refuses and a CPU cannot show: to clamp by a tensor, even a 0-d one, of another device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.clamp.Tensor:
            assert len({x.device for x in (*args, *(kwargs or {}).values()) if x is not None}) == 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("case", [*BASES, *(c for c in COMBINED if c.name == "clipped_by_value")], ids=str)
def test_numbers_may_be_on_the_cpu_and_weights_elsewhere(case: Case):
    opt, params = case.build(), start()
    state = tree.map_tree(lambda x: x.to("meta") if x.is_floating_point() else x, opt.init(params))
    params = tree.map_tree(lambda w: w.to("meta"), params)
    with Bounds():
        params, state = opt.update(params, state, params)
    assert all(w.is_meta for w in params.values())


@every_base
def test_memory_format_is_kept(case: Case):
    w = torch.randn(2, 3, 4, 5, dtype=torch.float64).to(memory_format=torch.channels_last)
    opt = case.build()
    state = opt.init(w)
    for _ in range(2):
        w, state = opt.update(torch.randn(2, 3, 4, 5, dtype=torch.float64), state, w)
        assert w.is_contiguous(memory_format=torch.channels_last)


#: One of each kind of update; tests/compiled has a training by every case, without a graph break.
KINDS = ("adam", "radam", "adafactor", "muon", "schedule_free_adamw", "accumulated", "noisy", "ftp", "hyper")


@pytest.mark.parametrize("case", [case for case in CASES if case.name in KINDS], ids=str)
def test_compiled_without_a_graph_break_equals_eager(case: Case):
    torch._dynamo.reset()  # it counts compilations by code, which optimizers of one kind share
    opt, params = case.build(), start()
    state = opt.init(params)
    compiled = torch.compile(opt.update, fullgraph=True, backend="aot_eager")
    for x in batches(2):
        grads = torch.func.grad(loss)(params, x)
        eager = opt.update(grads, state, params, opt.hparams)
        assert largest_difference(compiled(grads, state, params, opt.hparams), eager) <= CLOSE
        params, state = eager


@every_base
def test_one_value_per_layer_equals_a_run_per_layer(case: Case):
    params, opt = start(), case.build()
    lr = {"w": torch.tensor(0.2, dtype=torch.float64), "b": torch.tensor(0.03, dtype=torch.float64)}
    grads = torch.func.grad(loss)(params, batches(1)[0])
    state, layered = opt.init(params), opt.hparams | {"lr": lr}
    new, _ = opt.update(grads, state, params, layered)
    for name in params:
        alone, _ = opt.update(grads[name], opt.init(params[name]), params[name], opt.hparams | {"lr": lr[name]})
        assert torch.equal(new[name], alone)


@every_base
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_hparams_as_numbers_and_as_tensors_give_the_same_values(case: Case, dtype: torch.dtype):
    """A rule gets Python numbers of hparams, and 0-d tensors of those that are differentiated."""
    opt, grads = case.build(), [torch.func.grad(loss)(start(), x) for x in batches(4)]
    ends = []
    for needs_grad in (False, True):
        h = tree.map_tree(lambda x, yes=needs_grad: x.clone().requires_grad_(yes), opt.hparams)
        params = tree.map_tree(lambda x: x.to(dtype), start())
        state = opt.init(params, h)
        for g in grads:
            params, state = opt.update(tree.map_tree(lambda x: x.to(dtype), g), state, params, h)
        ends.append((params, state))
    for a, b in zip(*map(tree.leaves, ends), strict=True):
        assert a.dtype == b.dtype
        close = 8 * torch.finfo(a.dtype).eps if a.is_floating_point() else 0.0  # numbers are rounded alike, but for pow
        torch.testing.assert_close(a, b.detach(), rtol=close, atol=close)


@every_base
def test_leaves_make_their_steps_alone_where_gradients_are_none(case: Case):
    """At each step some have a gradient; each ends where a run of its own steps ends."""
    opt, params = case.build(), start()
    state, steps, given = opt.init(params), [{"w"}, {"b", "w"}, {"b"}, set(), {"w"}, {"b", "w"}], {"w": [], "b": []}
    for x, present in zip(batches(len(steps)), steps, strict=True):
        grads = torch.func.grad(loss)(params, x)
        for name in present:
            given[name].append(grads[name])
        before = params
        params, state = opt.update({n: g if n in present else None for n, g in grads.items()}, state, params)
        assert all(params[n] is before[n] for n in params.keys() - present)
    for name, own in given.items():
        w = {name: start()[name]}
        alone = opt.init(w)
        for g in own:
            w, alone = opt.update({name: g}, alone, w)
        # A rule gets Python numbers here and tensors above, whose powers torch may round otherwise.
        torch.testing.assert_close(w[name], params[name], rtol=CLOSE, atol=CLOSE)
        for field in alone._fields:
            tree_of = getattr(state, field)
            if isinstance(tree_of, dict):
                for x, y in zip(tree.leaves(getattr(alone, field)), tree.leaves(tree_of[name]), strict=True):
                    torch.testing.assert_close(x, y, rtol=CLOSE, atol=CLOSE)


def test_compiled_leaves_count_their_own_updates():
    torch._dynamo.reset()
    opt, params = hft.adam(lr=0.1, eps=1e-2), start()
    state = opt.init(params)
    compiled = torch.compile(opt.update, fullgraph=True, backend="eager")
    for t, x in enumerate(batches(3)):
        grads: dict = torch.func.grad(loss)(params, x)
        if t == 1:
            grads["b"] = None
        eager = opt.update(grads, state, params)
        assert largest_difference(compiled(grads, state, params), eager) <= CLOSE
        params, state = eager
    assert state.step == {"w": 3, "b": 2}


@every_base
def test_any_pytree_of_params(case: Case):
    opt, flat = case.build(), start()
    nested = (flat["w"], [{"x": flat["b"]}])
    new_nested, _ = opt.update(nested, opt.init(nested), nested)
    new_flat, _ = opt.update(flat, opt.init(flat), flat)
    assert torch.equal(new_nested[0], new_flat["w"])
    assert torch.equal(new_nested[1][0]["x"], new_flat["b"])
    assert opt.update({}, opt.init({}), {})[0] == {}


def test_every_pure_optimizer_is_a_case():
    """The public functions that return an optimizer, by the name before a dash."""
    public = {name: f for name, f in vars(hft).items() if inspect.isfunction(f) and not name.startswith("_")}
    made = {name for name, f in public.items() if inspect.get_annotations(f).get("return", "").startswith("Optimizer")}
    made -= {"from_torchopt"}  # of any update
    assert made == {case.name.partition("-")[0] for case in CASES}


def test_a_dead_unit_gives_a_zero_hypergradient_and_not_nan():
    lifts = ("eps", "initial_accumulator_value", "weight_decay")  # what would keep a root off zero here
    for case in BASES:
        opt = case.make(**{name: x for name, x in case.kwargs.items() if name not in lifts})
        grads = {"w": torch.zeros(2, dtype=torch.float64)}
        params = {"w": torch.ones(2, dtype=torch.float64)}

        def outer(hparams, opt=opt, grads=grads, params=params):
            p, state = params, opt.init(params)
            for _ in range(3):
                p, state = opt.update(grads, state, p, hparams)
            return p["w"].sum()

        assert all(x.isfinite() for x in tree.leaves(torch.func.grad(outer)(opt.hparams)))


def test_eps_root_enters_the_root():
    w, g = torch.zeros(1, dtype=torch.float64), torch.full((1,), 3.0, dtype=torch.float64)
    opt = hft.adam(lr=1.0, eps=0.0, eps_root=16.0)
    assert opt.update(g, opt.init(w), w)[0].item() == pytest.approx(-3 / 5, abs=1e-15)
