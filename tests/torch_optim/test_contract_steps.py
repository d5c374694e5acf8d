"""torch's contract for a step: every execution, no gradients, odd parameters, what is refused, closures, modes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ..support.compare import equal, kept, same
from ..support.contract import Options, Row, every_input, every_row, number, one_base, parameters, step
from ..support.executions import FLAGS

ROUNDING = {"rtol": 1e-12, "atol": 1e-12}  # of 6 steps in float64, in whatever order


@every_input
def test_executions_are_equal(row: Row, options: Options):
    """One parameter at a time, many in one call, and compiled; with a layer that is late and one that is left out."""
    sides = []
    for execution in row.executions(options):
        params = parameters()
        opt = row.build(params, **options, **FLAGS[execution])
        # torch's fused SGD, as of 2.13, cannot begin with a layer that comes late.
        late = [] if row.name.endswith("of SGD") else [(0, 1)]
        step(params, opt, range(6), absent=[*late, (3, 0)])
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
    assert not any(torch.equal(p, q) for p, q in zip(first, parameters(), strict=True) if p.numel())


LAYOUTS = {
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "apart": lambda x: torch.stack([x, x], -1)[..., 0],
}


@every_row
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("gradient", ["contiguous", "channels_last", "expanded"])
def test_gradients_of_another_layout_than_the_weights(row: Row, layout: str, gradient: str):
    sides = []
    for laid_out in (False, True):
        w = parameters(shapes=[(2, 3, 2, 2)])[0]
        if laid_out:
            w.data = LAYOUTS[layout](w.data)
        strides = w.stride()
        opt = row.build([w])
        for t in range(4):
            g = torch.randn((2, 3, 2, 2), generator=torch.Generator().manual_seed(t), dtype=torch.float64)
            if gradient == "expanded":
                g = g[:, :1, :1, :1].expand(2, 3, 2, 2)
            w.grad = g.to(memory_format=torch.channels_last) if gradient == "channels_last" else g
            opt.step()
        assert w.stride() == strides
        assert w.is_contiguous() == (not laid_out)
        sides.append(w)
    torch.testing.assert_close(sides[0], sides[1], **ROUNDING)


@every_row
def test_without_gradients_nothing_happens_and_zeros_move_nothing_at_the_start(row: Row):
    params = parameters()
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


@every_row
def test_a_parameter_without_entries_beside_others_and_alone(row: Row):
    for shapes in ([(0,)], [(0, 2)], [(3, 0), (2, 2)], [(1,), (0,)]):
        params = parameters(shapes=shapes)
        step(params, row.build(params), range(3))
        assert [tuple(p.shape) for p in params] == shapes
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


@every_row
@pytest.mark.parametrize("shape", [(), (1,)], ids=["0-d", "1-element"])
def test_a_learning_rate_in_a_tensor_may_be_changed_in_place(row: Row, shape: tuple[int, ...]):
    """By a schedule or by hand: the run of the numbers, to the last bit."""
    params, others = parameters(), parameters()
    lr = number(0.05, *shape)
    opt = row.make(params, lr=lr)
    plain = row.build(others, lr=0.05)
    for t in range(5):
        lr.fill_(0.05 / (t + 1))
        plain.param_groups[0]["lr"] = 0.05 / (t + 1)
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


@every_row
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_lr_0_leaves_the_weights_exactly(row: Row, dtype: torch.dtype):
    """From the start, and with a gradient: what torch.distributed.checkpoint does to a fresh optimizer, for one."""
    params = parameters(dtype)
    opt = row.build(params, lr=0.0, weight_decay=0.1)
    before = kept(params)
    step(params, opt, range(3))
    assert equal(params, before)
