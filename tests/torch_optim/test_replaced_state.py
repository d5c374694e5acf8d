"""Parameters and state that torch replaces under the optimizer: swapped tensors, functional steps,
the distributed checkpoint in one process."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

import hyperopt_ftp as hft

from ..support.compare import equal, kept
from ..support.contract import ROWS, Row, again, parameters, step
from ..support.executions import FLAGS, every_execution

every_ftp = pytest.mark.parametrize(
    "row", [ROWS[name] for name in ("FTPAdamW", "FTPSGD", "FTP of AdamW")], ids=lambda row: row.name
)


def begun(row: Row, execution: str, steps: int = 3, start: Any = None) -> tuple[Any, Any]:
    """A module and its optimizer, after some steps."""
    model = torch.nn.ParameterList(parameters() if start is None else start)
    opt = row.build(model.named_parameters(), **FLAGS[execution])
    step([*model], opt, range(steps))
    return model, opt


@every_execution
@every_ftp
def test_swap_tensors_under_the_optimizer(row: Row, execution: str):
    """Same object, other content: the run goes on from it, with the state of the object."""
    sides = []
    for swapped in (True, False):
        model, opt = begun(row, execution)
        opt.zero_grad()
        for p in model:
            new = p.detach() * 1.01
            torch.utils.swap_tensors(p, torch.nn.Parameter(new)) if swapped else p.data.copy_(new)
        step([*model], opt, range(3, 6))
        assert set(opt.state) == set(model)
        assert opt.execution == execution
        sides.append(([*model], opt.radii()))
    assert equal(sides[0][0], sides[1][0])
    assert sides[0][1] == sides[1][1]


@every_execution
@every_ftp
def test_swap_in_optimizer_params_and_state(row: Row, execution: str):
    """A step on other tensors through the live optimizer: they move as its own would, and it does not notice."""
    swap_in = getattr(torch.optim, "swap_in_optimizer_params_and_state", None)
    if swap_in is None:
        pytest.skip("this torch has no such function")
    (model, opt), (straight, reference) = (begun(row, execution) for _ in range(2))
    before = kept([*model])
    for _ in range(3):  # more than once: nothing of the strangers is kept
        other = torch.nn.ParameterList(again(before))
        saved = copy.deepcopy(opt.state_dict())
        with swap_in(opt, dict(other.named_parameters()), saved):
            step([*other], opt, [3])
            radii = opt.radii()
        assert equal(model, before)
        assert saved["state"][0]["radius_step"] == 4
    step([*model], opt, [3])
    assert equal(model, other)
    assert opt.radii() == radii
    step([*model], opt, range(4, 6))
    step([*straight], reference, range(3, 6))
    assert equal(model, straight)
    assert opt.execution == execution


@every_execution
@every_ftp
def test_the_distributed_checkpoint_of_a_fresh_optimizer(row: Row, execution: str):
    """It makes a step of lr = 0 to know the state's names: weights stay, and a checkpoint by names goes on exactly."""
    straight, reference = begun(row, execution)
    saved = copy.deepcopy(get_optimizer_state_dict(straight, reference))
    before = kept([*straight])
    model, opt = begun(row, execution, steps=0, start=again(before))
    fresh = get_optimizer_state_dict(model, opt)
    assert equal(model, before)
    assert fresh["state"].keys() == saved["state"].keys() == dict(model.named_parameters()).keys()
    for n, state in fresh["state"].items():
        assert state.keys() == saved["state"][n].keys()
    set_optimizer_state_dict(model, opt, saved)
    assert equal(model, before)
    step([*model], opt, range(3, 6))
    step([*straight], reference, range(3, 6))
    assert equal(model, straight)
    assert opt.radii() == reference.radii()
    assert opt.execution == execution


def test_the_distributed_checkpoint_may_join_groups():
    """It goes by name, and keeps the names of one of the groups."""
    model = torch.nn.ParameterList(parameters())
    names = list(model.named_parameters())
    base = torch.optim.AdamW([{"params": names[:1]}, {"params": names[1:]}], lr=0.1)
    step([*model], base, range(3))
    saved = copy.deepcopy(get_optimizer_state_dict(model, base))
    opt = hft.FTPAdamW(names, lr=0.1, anchor={name: p.detach().clone() for name, p in names})
    set_optimizer_state_dict(model, opt, saved)
    assert all(torch.equal(opt.state[p]["exp_avg"], base.state[p]["exp_avg"]) for p in model)
    assert [len(group["param_names"]) for group in opt.param_groups] == [len(model)]
