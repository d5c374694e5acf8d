"""A fuzz of the whole surface of the drop-in classes: rules in any order, every result compared with the reference.

``make test`` makes nearly two thousand rule steps, always the same ones; ``make fuzz`` at least 50,000 new ones.
"""

from __future__ import annotations

from collections import Counter
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from safetensors.torch import save_file

import hyperopt_ftp as hft

from ..support.executions import FLAGS, every_execution
from .machine import Machine


def test_whatever_is_done_in_whatever_order_equals_the_reference():
    thorough = settings.default.max_examples > 100
    tally: Counter[str] = Counter()
    runs = settings(
        max_examples=3000 if thorough else 50,
        stateful_step_count=42,
        report_multiple_bugs=False,  # each of them is made small, which takes minutes
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(partial(Machine, tally), settings=runs)
    print(f"\n{tally.total()} rule steps: {dict(tally.most_common())}")
    assert tally.total() >= (50_000 if thorough else 1_200)
    assert tally.keys() == {rule.function.__name__ for rule in Machine.setup_state().rules}


# What it has found, in short.


def train(opt, params, steps):
    for _ in range(steps):
        for p in params:
            p.grad = torch.ones_like(p)
        opt.step()
        opt.zero_grad()


@every_execution
def test_float64_anchors_serve_weights_that_became_float32(execution):
    p = torch.nn.Parameter(torch.randn(3, 4, dtype=torch.float64))
    opt = hft.FTPAdamW([p], lr=1e-2, **FLAGS[execution])
    train(opt, [p], 3)
    before = p.detach().clone()
    p.data = p.data.float()
    train(opt, [p], 1)
    assert opt.execution == execution
    assert 0 < (p.detach() - before).abs().max() < 2e-2


@pytest.mark.parametrize("changed", ["layout", "dtype"])
def test_an_anchor_in_a_file_outlives_the_form_in_which_it_served(tmp_path, changed):
    p = torch.nn.Parameter(torch.randn(2, 3, 2, 2, dtype=torch.float64))
    save_file({"w": p.detach().clone()}, tmp_path / "anchor.safetensors")
    opt = hft.FTPAdamW([("w", p)], lr=1e-2, anchor=str(tmp_path / "anchor.safetensors"))
    train(opt, [p], 3)
    before = p.detach().clone()
    p.data = p.data.float() if changed == "dtype" else p.data.to(memory_format=torch.channels_last)
    train(opt, [p], 1)
    assert 0 < (p.detach() - before).abs().max() < 2e-2  # not drawn to zero


@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize("first", [torch.float64, torch.float32], ids=str)
def test_a_given_float64_anchor_is_known_again_on_the_other_side_of_float64(first, saved):
    p = torch.nn.Parameter(torch.randn(3, 4, dtype=torch.float64).to(first))
    given = {"w": p.detach().double() + 0.1 * torch.randn(3, 4, dtype=torch.float64)}
    opt = hft.FTPAdamW([("w", p)], anchor=given, save_anchor=saved)
    train(opt, [p], 2)
    anchor = opt.state[p]["anchor"].clone()
    p.data = p.data.to(torch.float32 if first == torch.float64 else torch.float64)
    again = hft.FTPAdamW([("w", p)], anchor=given, save_anchor=saved)
    again.load_state_dict(opt.state_dict())
    assert torch.equal(again.state[p]["anchor"], anchor)


def test_a_given_float64_anchor_is_kept_for_checkpoints_of_weights_in_float64():
    p, q = (torch.nn.Parameter(torch.ones(3, 4, dtype=dtype)) for dtype in (torch.float32, torch.float64))
    given = {"w": 1 + 0.1 * torch.randn(3, 4, dtype=torch.float64)}
    opt, other = (hft.FTPAdamW([("w", w)], anchor=given) for w in (p, q))
    train(opt, [p], 1)
    train(other, [q], 1)
    p.data = p.data.double()
    opt.load_state_dict(other.state_dict())
    assert torch.equal(opt.state[p]["anchor"], given["w"])
