"""torch's contract for state: dicts that are edited, named, old or cast; copies; groups that are added."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hyperopt_ftp as hft

from ..support.compare import equal, kept, same
from ..support.contract import (
    TORCHS,
    Options,
    Row,
    again,
    begun,
    inputs,
    one_base,
    parameters,
    rows,
    step,
    through_a_file,
)
from ..support.draws import gaps, several

STEPS = 6
#: After how many steps something happens.
moments = st.integers(0, STEPS)


@settings(max_examples=50)
@given(chosen=inputs, sizes=several, at=moments, absent=gaps(4, STEPS))
def test_a_file_of_plain_values_goes_on_bit_for_bit(
    chosen: tuple[Row, Options], sizes: list[tuple[int, ...]], at: int, absent: set[tuple[int, int]]
):
    """torch.load(weights_only=True); the state dicts are equal, then and later, and loading leaves the saved one."""
    row, options = chosen
    params = parameters(shapes=sizes)
    opt = row.build(params, **options)
    step(params, opt, range(at), absent)
    saved = through_a_file(opt.state_dict())
    assert same(saved, opt.state_dict())
    others = again(params)
    fresh = row.build(others, **options)
    given = copy.deepcopy(saved)
    fresh.load_state_dict(given)
    assert same(given, saved)
    assert same(fresh.state_dict(), opt.state_dict())
    step(params, opt, range(at, STEPS), absent)
    step(others, fresh, range(at, STEPS), absent)
    assert equal(others, params)
    assert same(fresh.state_dict(), opt.state_dict())


@given(row=rows, how=st.sampled_from(["deepcopy", "pickle"]), at=moments)
def test_copies_go_on_bit_for_bit(row: Row, how: str, at: int):
    params, opt = begun(row, steps=at)
    others, twin = copy.deepcopy((params, opt)) if how == "deepcopy" else pickle.loads(pickle.dumps((params, opt)))
    assert type(twin) is type(opt)
    public = {name for name in vars(opt) if not name.startswith("_")}
    assert {name for name in vars(twin) if not name.startswith("_")} == public
    assert all(p is q for p, q in zip(others, twin.param_groups[0]["params"], strict=True))
    step(params, opt, range(at, STEPS))
    step(others, twin, range(at, STEPS))
    assert equal(others, params)
    assert same(twin.state_dict(), opt.state_dict())
    step(others, twin, [STEPS])
    assert not equal(others, params)


@given(row=rows, names=st.sampled_from([(True, True), (True, False), (False, True)]))
def test_names_are_those_of_the_optimizer_that_loads_or_else_of_the_checkpoint(row: Row, names: tuple[bool, bool]):
    there, here = names
    params, opt = begun(row, names=there)
    others = again(params)
    fresh = row.build([(f"other{i}", p) for i, p in enumerate(others)] if here else others)
    fresh.load_state_dict(copy.deepcopy(opt.state_dict()))
    found = fresh.param_groups[0]["param_names"]
    assert found == [f"{'other' if here else 'p'}{i}" for i in range(len(params))]
    step(params, opt, range(3, 5))
    step(others, fresh, range(3, 5))
    assert equal(others, params)


@one_base
def test_a_checkpoint_brings_its_options_and_those_of_others_along(row: Row):
    """Groups that were edited in the dict, of which some have entries of other programs."""
    params = parameters()
    opt = row.build([{"params": params[:2]}, {"params": params[2:], "lr": 0.25}])
    step(params, opt, range(2))
    saved = copy.deepcopy(opt.state_dict())
    saved["param_groups"][0] |= {"lr": 0.125, "maximize": True, "initial_lr": 0.5}
    opt.load_state_dict(saved)
    first, second = opt.param_groups
    assert (first["lr"], first["maximize"], first["initial_lr"]) == (0.125, True, 0.5)
    assert (second["lr"], second["maximize"]) == (saved["param_groups"][1]["lr"], False)
    assert "initial_lr" not in second
    step(params, opt, [2])
    with pytest.raises(ValueError, match="different number of parameter groups"):
        row.build(parameters()).load_state_dict(saved)
    with pytest.raises(ValueError, match="doesn't match the size of optimizer's group"):
        row.build([{"params": params[:3]}, {"params": params[3:]}]).load_state_dict(saved)


#: Options of torch's that a checkpoint of an earlier torch lacks.
NEWER = {"maximize", "foreach", "fused", "capturable", "amsgrad", "nesterov"}
#: Of the base, which a checkpoint must have, and its parameters.
NUMBERS = {"params", "lr", "betas", "eps", "weight_decay", "momentum", "dampening"}


@given(row=rows)
def test_groups_without_newer_options_get_the_defaults(row: Row):
    params, opt = begun(row)
    straight, reference = copy.deepcopy((params, opt))
    step(straight, reference, range(3, 5))
    ours = inspect.signature(type(opt)).parameters.keys() - NUMBERS
    for key in (NEWER | ours) & opt.param_groups[0].keys():
        others, old = copy.deepcopy((params, opt))
        saved = old.state_dict()
        saved["param_groups"] = copy.deepcopy(saved["param_groups"])
        for group in saved["param_groups"]:
            del group[key]
        old.load_state_dict(saved)
        assert old.param_groups[0][key] == opt.param_groups[0][key]
        step(others, old, range(3, 5))
        assert equal(others, straight)


MAKES: dict[str, Callable[[Any], Any]] = {
    "FTPAdamW": lambda params: hft.FTPAdamW(params, amsgrad=True),
    "FTPSGD": lambda params: hft.FTPSGD(params, momentum=0.9),
    **{
        f"FTP({name})": lambda params, name=name: hft.FTP(getattr(torch.optim, name)(params, **TORCHS[name]))
        for name in TORCHS
    },
}


WIDE = [torch.float64, torch.float32]


@given(
    make=st.sampled_from([*MAKES.values()]), there=st.sampled_from(WIDE), here=st.sampled_from([*WIDE, torch.bfloat16]),
    sizes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=3),
)  # fmt: skip
def test_a_checkpoint_of_weights_of_another_dtype_goes_on(make, there: torch.dtype, here: torch.dtype, sizes):
    """torch's optimizers then need their state in the new dtype; a step differs by roundings of weights and state."""
    params = parameters(there, sizes)
    opt = make(params)
    step(params, opt, range(3))
    others = [torch.nn.Parameter(p.detach().to(here)) for p in params]
    fresh = make(others)
    fresh.load_state_dict(copy.deepcopy(opt.state_dict()))
    step(params, opt, range(3, 5))
    step(others, fresh, range(3, 5))
    eps = max(torch.finfo(there).eps, torch.finfo(here).eps)
    for p, q in zip(params, others, strict=True):
        assert q.dtype == here
        assert (p.double() - q.double()).abs().max() <= 8 * eps * max(1.0, p.abs().max().item())


def test_what_others_keep_in_a_dtype_of_their_own_stays_in_it():
    """A base that is not torch's may want float32 moments of 16-bit weights, and NAdam's product is no moment."""

    class Wide(torch.optim.Optimizer):
        def __init__(self, params: Any) -> None:
            super().__init__(params, {"lr": 0.1})

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:
            for p in self.param_groups[0]["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p, dtype=torch.float32))
                p.sub_(0.1 * m.add_(p.grad))

    for base, key in ((Wide, "m"), (torch.optim.NAdam, "mu_product")):
        params = parameters(torch.bfloat16, [(4, 3)])
        opt = hft.FTP(base(params))
        step(params, opt, range(2))
        assert opt.state[params[0]][key].dtype == torch.float32
        before = kept(opt.state[params[0]])
        opt.load_state_dict(copy.deepcopy(opt.state_dict()))
        assert same(kept(opt.state[params[0]]), before)


@one_base
def test_a_group_that_is_added_gets_the_defaults_and_steps(row: Row):
    params = parameters()
    opt = row.build(params[:1], weight_decay=0.125)
    step(params[:1], opt, range(2))
    before = kept(opt.state[params[0]])
    opt.add_param_group({"params": params[1], "lr": 0.5})
    opt.add_param_group({"params": iter(params[2:])})
    assert [len(group["params"]) for group in opt.param_groups] == [1, 1, len(params) - 2]
    first, second, third = opt.param_groups
    assert second["lr"] == 0.5
    assert third.keys() == first.keys()
    assert all(third[key] == first[key] for key in first if key not in ("params", "constrained"))
    assert same(kept(opt.state[params[0]]), before)
    step(params, opt, [2])
    assert all(opt.state[p] for p in params)
