"""torch's contract for a step: every execution, no gradients, odd parameters, what is refused, closures, modes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ..support.compare import equal, kept, same
from ..support.contract import Options, Row, inputs, number, one_base, parameters, rows, step
from ..support.draws import dtypes, gaps, normal, seeds, several
from ..support.executions import FLAGS

ROUNDING = {"rtol": 1e-12, "atol": 1e-12}  # of 6 steps in float64, in whatever order


@settings(max_examples=50)
@given(chosen=inputs, sizes=several, absent=gaps(4, 6))
def test_executions_are_equal(chosen: tuple[Row, Options], sizes: list[tuple[int, ...]], absent: set[tuple[int, int]]):
    """One parameter at a time, many in one call, and compiled; also where layers are late or left out."""
    (row, options), sides = chosen, []
    if row.name.endswith("of SGD"):  # torch's fused SGD, as of 2.13, cannot begin with a layer that comes late
        absent = {(t, i) for t, i in absent if t}
    for execution in row.executions(options):
        params = parameters(shapes=sizes)
        opt = row.build(params, **options, **FLAGS[execution])
        step(params, opt, range(6), absent)
        assert opt.execution == row.ran(execution)
        sides.append((params, opt))
    first, reference = sides[0]
    for params, opt in sides[1:]:
        for p, q in zip(params, first, strict=True):
            torch.testing.assert_close(p, q, **ROUNDING)
            assert opt.state[p].keys() == reference.state[q].keys()
            for key, value in reference.state[q].items():
                found = opt.state[p][key]
                assert type(found) is type(value)
                if isinstance(value, torch.Tensor):
                    torch.testing.assert_close(found, value, **ROUNDING)
                else:  # a fingerprint
                    assert found == value
    for i, (p, q) in enumerate(zip(first, parameters(shapes=sizes), strict=True)):
        assert not p.numel() or torch.equal(p, q) == ({(t, i) for t in range(6)} <= absent)


LAYOUTS = {
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "apart": lambda x: torch.stack([x, x], -1)[..., 0],
}


@settings(max_examples=50)
@given(
    row=rows, layout=st.sampled_from(sorted(LAYOUTS)), seed=seeds, size=st.tuples(*[st.integers(1, 3)] * 4),
    gradient=st.sampled_from(["contiguous", "channels_last", "expanded"]),
)  # fmt: skip
def test_gradients_of_another_layout_than_the_weights(row, layout, seed, size, gradient):
    sides = []
    for laid_out in (False, True):
        w, *grads = normal(seed, [size] * 5)
        w = torch.nn.Parameter(LAYOUTS[layout](w) if laid_out else w)
        strides = w.stride()
        opt = row.build([w])
        for g in grads:
            if gradient == "expanded":
                g = g[:, :1, :1, :1].expand(size)
            w.grad = g.to(memory_format=torch.channels_last) if gradient == "channels_last" else g
            opt.step()
        assert w.stride() == strides
        sides.append(w)
    torch.testing.assert_close(sides[0], sides[1], **ROUNDING)


@given(row=rows, sizes=several)
def test_without_gradients_nothing_happens_and_zeros_move_nothing_at_the_start(row, sizes):
    """Also of parameters without entries, beside others and alone, which then make steps like any."""
    params = parameters(shapes=sizes)
    opt = row.build(params, weight_decay=0.0)
    before = kept(params)
    opt.step()
    assert not any(opt.state.values())
    assert not opt.state_dict()["state"]
    for _ in range(3):
        for p in params:
            p.grad = torch.zeros_like(p)
        opt.step()
    assert equal(params, before)
    step(params, opt, range(3))
    assert [tuple(p.shape) for p in params] == sizes
    assert all(p.isfinite().all() for p in params)


@one_base
def test_a_closure_is_called_once_and_modes_are_left_as_they_were(row: Row):
    params = parameters()
    opt = row.build(params)
    seen: list[bool] = []

    def closure() -> str:
        seen.append(torch.is_grad_enabled())
        for p in params:
            p.grad = torch.ones_like(p)
        return "the loss"

    def fails() -> None:
        raise ArithmeticError

    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            assert opt.step(closure) == opt.step(closure=closure) == "the loss"
            assert opt.step() is None
            assert torch.is_grad_enabled() == enabled
            with pytest.raises(ArithmeticError):
                opt.step(fails)
            assert torch.is_grad_enabled() == enabled
    assert seen == [True] * 4
    assert all(p.requires_grad and p.grad_fn is None and p.is_leaf for p in params)


@given(row=rows, shape=st.sampled_from([(), (1,)]), rates=st.lists(st.floats(0, 0.1), min_size=2, max_size=5))
def test_a_learning_rate_in_a_tensor_may_be_changed_in_place(row, shape, rates):
    """By a schedule or by hand: the run of the numbers, to the last bit."""
    params, others = parameters(), parameters()
    lr = number(rates[0], *shape)
    opt, plain = row.make(params, lr=lr), row.build(others, lr=rates[0])
    for t, rate in enumerate(rates):
        lr.fill_(rate)
        plain.param_groups[0]["lr"] = rate
        step(params, opt, [t])
        step(others, plain, [t])
    assert opt.param_groups[0]["lr"] is lr
    assert equal(params, others)


@one_base
def test_another_default_dtype_changes_no_run(row: Row):
    runs: list[Any] = []
    for default in (torch.float32, torch.float64):
        params = parameters(torch.float32)
        opt = row.build(params)
        step(params, opt, [0])
        torch.set_default_dtype(default)
        try:
            step(params, opt, range(1, 4))
        finally:
            torch.set_default_dtype(torch.float32)
        runs.append([kept(params), [kept(opt.state[p]) for p in params]])
    assert same(*runs)


@given(row=rows, dtype=dtypes.filter(lambda dtype: dtype != torch.float16), sizes=several)
def test_lr_0_leaves_the_weights_exactly(row, dtype, sizes):
    """From the start, and with a gradient: what torch.distributed.checkpoint does to a fresh optimizer, for one."""
    params = parameters(dtype, sizes)
    opt = row.build(params, lr=0.0, weight_decay=0.1)
    before = kept(params)
    step(params, opt, range(3))
    assert equal(params, before)
