"""Every pure optimizer times every property, and every exact strategy (the table is in tests/support/cases.py)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import hyperopt_ftp as hft
from hyperopt_ftp import testing, tree
from hyperopt_ftp.hparams import as_numbers
from hyperopt_ftp.optimizers.by_rule import entry_rule
from hyperopt_ftp.testing import same, strategies

from ..support.cases import BASES, CASES, COMBINED, Case
from ..support.hypergradients import EXACT
from ..support.problems import batches, entries, largest_difference, loss, start, train

every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_base = pytest.mark.parametrize("case", BASES, ids=str)

F64 = torch.float64
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


@pytest.mark.filterwarnings("ignore:the hypergradient of")  # some are 0 by the rule
@pytest.mark.parametrize("case", [case for case in CASES if case.smooth], ids=str)
def test_exact_strategies_are_the_derivative_of_the_loop(case: Case):
    """Up to rounding; that derivative equals central differences, as every optimizer promises."""
    opt, data = case.build(), batches(5)
    outer = lambda params: loss(params, data[0] + 0.3)  # noqa: E731
    trained = train(opt, None, start(), data)
    want = entries(torch.func.grad(lambda h: outer(train(opt, h, start(), data)[0]))(opt.hparams))
    scale = max(want.abs().max().item(), 1.0)
    for name, how in EXACT.items():
        value, grads, end = hft.hypergradient(opt, loss, outer, start(), data, strategy=how)
        told = lambda m, name=name: f"{name}: {m}"  # noqa: E731
        torch.testing.assert_close(entries(grads), want, rtol=1e-10, atol=1e-13 * scale, msg=told)
        assert value.item() == pytest.approx(outer(trained[0]).item(), rel=1e-12)
        for a, b in zip(tree.leaves(end), tree.leaves(trained), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
            assert not a.requires_grad


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
    w = torch.randn(2, 3, 4, 5, dtype=F64).to(memory_format=torch.channels_last)
    opt = case.build()
    state = opt.init(w)
    for _ in range(2):
        w, state = opt.update(torch.randn(2, 3, 4, 5, dtype=F64), state, w)
        assert w.is_contiguous(memory_format=torch.channels_last)


@settings(max_examples=40)
@given(run=strategies.runs(), opt=strategies.rules(maximize=True), data=st.data())
def test_one_value_per_layer_equals_a_run_per_layer(run: strategies.Run, opt: hft.Optimizer, data: Any):
    """And a leaf makes its steps alone, wherever gradients are missing; small ones are computed together.

    Up to rounding: one count of steps is a Python number, whose powers torch may round otherwise.
    """
    rates = tree.map_tree(lambda w: torch.tensor(data.draw(strategies.between(0.01, 0.2)), dtype=F64), run.params)
    together = run.by(opt, {**opt.hparams, "lr": rates})[0]
    each = zip(*map(tree.leaves, (run.params, rates, together)), *map(tree.leaves, run.grads), strict=True)
    for w, lr, moved, *grads in each:
        alone = strategies.Run(w, grads).by(opt, {**opt.hparams, "lr": lr})[0]
        # 8 roundings of numbers of order 1, divided by 0.01 or more.
        torch.testing.assert_close(moved, alone, rtol=CLOSE, atol=CLOSE)


DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@settings(max_examples=40)
@given(run=strategies.runs(strategies.params(DTYPES)), opt=strategies.rules())
def test_leaves_of_several_dtypes_make_their_steps_alone(run: strategies.Run, opt: hft.Optimizer):
    params, state = run.by(opt)
    for i, w in enumerate(tree.leaves(run.params)):
        grads = [tree.leaves(g)[i] for g in run.grads]
        own, new = strategies.Run(w, grads).by(opt)[0], tree.leaves(params)[i]
        assert (own.shape, own.dtype, own.stride()) == (new.shape, new.dtype, new.stride())
        # A rounding of the last step, of values up to 4 or so, where powers of a count are rounded otherwise.
        close = 8 * torch.finfo(w.dtype).eps
        torch.testing.assert_close(own, new, rtol=close, atol=close)
        assert new is w or any(g is not None for g in grads)
    storages = [
        x.untyped_storage().data_ptr() for x in tree.leaves((params, state)) if x.numel() and x.is_floating_point()
    ]
    moved = all(any(tree.leaves(g)[i] is not None for g in run.grads) for i in range(len(tree.leaves(params))))
    assert not moved or len(set(storages)) == len(storages)  # each can be saved, or written into, by itself


@settings(max_examples=40)
@given(run=strategies.runs(strategies.params(DTYPES)), opt=strategies.rules(), data=st.data())
def test_hparams_as_numbers_and_as_tensors_give_the_same_values(run: strategies.Run, opt: hft.Optimizer, data: Any):
    """A rule gets Python numbers of hparams, and 0-d tensors of those that are differentiated: none, some, all."""
    values, rebuild = tree.flatten(opt.hparams)
    tracked = data.draw(st.sets(st.sampled_from(range(len(values)))))
    ends = [
        run.by(opt, rebuild([x.clone().requires_grad_(i in some) for i, x in enumerate(values)]))
        for some in (set(), tracked)
    ]
    for a, b in zip(*map(tree.leaves, ends), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        # Numbers are rounded alike, but for pow.
        close = 8 * torch.finfo(a.dtype).eps if a.is_floating_point() else 0.0
        torch.testing.assert_close(a, b.detach(), rtol=close, atol=close)


@settings(max_examples=40)
@given(run=strategies.runs(), opt=strategies.rules())
def test_any_pytree_of_params_is_its_leaves(run: strategies.Run, opt: hft.Optimizer):
    flat = strategies.Run(tree.leaves(run.params), [tree.leaves(g) for g in run.grads])
    params = run.by(opt)[0]
    assert tree.structure(params) == tree.structure(run.params)
    assert same(tree.leaves(params), flat.by(opt)[0])


@pytest.mark.parametrize("case", [c for c in BASES if not c.whole], ids=str)
def test_one_vector_and_its_parts_move_alike_bit_for_bit(case: Case):
    """Values and their derivatives in the first weights; the derivatives in a number are sums in another order."""
    opt, sizes = case.build(), [5, 1, 12, 31]
    own: Any = entry_rule(opt.update)
    total, steps = sum(sizes), max(case.steps, 4)
    begin, slope, *shifts = torch.randn(steps + 2, total, dtype=F64)

    def end(cut: Callable[[Tensor], list[Tensor]], run: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        """``run`` of each part, with what makes its gradients."""
        w, lr = begin.clone().requires_grad_(), opt.hparams["lr"].clone().requires_grad_()
        columns = zip(*map(cut, (w, slope, *shifts)), strict=True)
        new = torch.cat([run({**opt.hparams, "lr": lr}, part, a, b) for part, a, *b in columns])
        return new.detach(), *torch.autograd.grad(new.square().sum(), (w, lr))

    def by_updates(hparams: Any, w: Tensor, a: Tensor, b: list[Tensor]) -> Tensor:
        state = opt.init(w, hparams)
        for x in b:
            w, state = opt.update(a * w - x, state, w, hparams)
        return w

    def by_the_rule(hparams: Any, w: Tensor, a: Tensor, b: list[Tensor]) -> Tensor:
        s, h = {name: torch.zeros_like(w) for name in own.keeps}, own.by_name(as_numbers(own.flat(hparams)))
        for t, x in enumerate(b, start=1):
            w, s = own.rule(w, a * w - x, s, h, t if own.counted else None)
        return w

    whole, parts = lambda x: [x], lambda x: list(x.split(sizes))
    want = end(whole, by_updates)
    for cut, run in ((parts, by_updates), *(((whole, by_the_rule), (parts, by_the_rule)) if own else ())):
        got = end(cut, run)
        assert torch.equal(got[0], want[0])
        assert torch.equal(got[1], want[1])
        # Sums of 49 terms of three steps.
        torch.testing.assert_close(got[2], want[2], rtol=1e-13, atol=1e-13)


#: What is frozen is given back, and ``hyper`` remembers the params that it gives.
NEW = [(case, False) for case in CASES if case.name not in ("frozen-part", "hyper")]


@pytest.mark.parametrize(("case", "zero"), [*NEW, *((case, True) for case in BASES)], ids=str)
def test_what_comes_back_shares_no_memory(case: Case, zero: bool):
    """With what was given, or with each other: it may be changed in place. Also where numbers are 0, and a rule hands
    on what it got, and of one tensor, with which none is computed together."""
    opt = case.build()
    domains = {name: opt.domains[name] for name in opt.hparams}
    off = [name for name, domain in domains.items() if zero and domain.holds(0.0) and name not in ("lr", "d", "etas")]
    h = {name: tree.map_tree(lambda x, name=name: 0 * x if name in off else x, x) for name, x in opt.hparams.items()}

    def memory(*trees: Any) -> list[int]:
        return [x.untyped_storage().data_ptr() for x in tree.leaves(trees) if x.numel()]

    for params in (start(), start()["w"])[: 1 + (case in BASES)]:
        state = opt.init(params, h)
        for _ in range(4):
            grads = tree.map_tree(torch.randn_like, params)
            new = opt.update(grads, state, params, h)
            mine = memory(new)
            assert len({*mine}) == len(mine)
            assert not {*mine} & {*memory(grads, state, params)}
            params, state = new


class Roots(TorchDispatchMode):
    """Counts square roots: an update of Adam has one for each tensor that it computes."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten.sqrt.default
        return func(*args, **(kwargs or {}))


def test_small_tensors_are_computed_as_one_where_their_hparams_are_the_same():
    opt, params = hft.adam(), {name: torch.ones(2, dtype=F64) for name in "abcd"}
    rates = [torch.tensor(x, dtype=F64) for x in (0.1, 0.2)]
    lr = {"a": rates[0], "b": rates[1], "c": rates[0], "d": torch.full((2,), 0.3, dtype=F64)}
    counts = []
    for hparams in (opt.hparams, {**opt.hparams, "lr": lr}):
        with Roots() as roots:
            opt.update(params, opt.init(params), params, hparams)
        counts.append(roots.count)
    assert counts == [1, 3]


def test_leaves_that_are_mapped_over_other_dimensions():
    """Those that are computed together too."""
    opt, w, b = hft.adam(lr=0.1, eps=1e-2), torch.randn(2, 3, 4, dtype=F64), torch.randn(4, dtype=F64)
    data = batches(3)

    def value(lr: Tensor, w: Tensor) -> Tensor:
        end = train(opt, {**opt.hparams, "lr": lr}, {"w": w, "b": b}, data)[0]
        return sum(p.square().sum() for p in end.values())

    lrs, slope = torch.tensor([0.1, 0.2], dtype=F64), torch.func.grad(value)
    want = torch.stack([slope(lr, x) for lr, x in zip(lrs, w, strict=True)])
    for dim in (0, 1):
        got = torch.func.vmap(slope, in_dims=(0, dim))(lrs, w.movedim(0, dim))
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


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


def test_no_params_at_all():
    for case in BASES:
        opt = case.build()
        assert opt.update({}, opt.init({}), {})[0] == {}


def test_every_pure_optimizer_is_a_case():
    """The public functions that return an optimizer, by the name before a dash."""
    public = {name: f for name, f in vars(hft).items() if inspect.isfunction(f) and not name.startswith("_")}
    made = {name for name, f in public.items() if inspect.get_annotations(f).get("return", "").startswith("Optimizer")}
    made -= {"from_torchopt"}  # of any update
    assert made == {case.name.partition("-")[0] for case in CASES}


@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=str)
@pytest.mark.parametrize("case", [c for c in BASES if "eps" in c.kwargs and "eps" not in c.own], ids=str)
def test_a_dead_unit_has_finite_second_derivatives_also_without_eps(case: Case, dtype: torch.dtype):
    """Of one that was always dead, and of one that died after a first step."""
    if case.make in (hft.adamax, hft.adafactor):
        pytest.skip("it divides by a largest gradient" if case.make is hft.adamax else "eps is a pair")
    without = {"eps", "weight_decay"} & inspect.signature(case.make).parameters.keys()
    opt = case.make(**{**case.kwargs, **dict.fromkeys(without, 0.0)})
    scales = torch.tensor([0.0, 1.0], dtype=dtype)

    def end(hparams: Any, w: Tensor) -> Tensor:
        state = opt.init(w, hparams)
        for t in range(3):
            w, state = opt.update(scales * (w if t == 0 else 0.0 * w), state, w, hparams)
        return w.square().sum()

    first = torch.func.grad(end, argnums=(0, 1))

    def slopes(hparams: Any, w: Tensor) -> Any:
        return sum(x.sum() for x in tree.leaves(first(hparams, w)))

    second = torch.func.grad(slopes, argnums=(0, 1))
    for f in (first, second):
        assert all(x.isfinite().all() for x in tree.leaves(f(opt.hparams, torch.ones(2, dtype=dtype))))


def test_eps_root_enters_the_root():
    w, g = torch.zeros(1, dtype=F64), torch.full((1,), 3.0, dtype=F64)
    opt = hft.adam(lr=1.0, eps=0.0, eps_root=16.0)
    assert opt.update(g, opt.init(w), w)[0].item() == pytest.approx(-3 / 5, abs=1e-15)
