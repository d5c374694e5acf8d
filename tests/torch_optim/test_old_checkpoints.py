"""Checkpoints that earlier code wrote load to the last bit and are gone on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperopt_ftp import tree

from .old_checkpoints import AFTER, BEFORE, DROP_IN, PURE, parameters, play, unfold, weights

FOLDER = Path(__file__).parent.parent / "reference" / "checkpoints"
FILES = pytest.mark.parametrize("file", [FOLDER / "650d6f8.pt"], ids=lambda path: path.stem)


def assert_identical(a: Any, b: Any, where: str) -> None:
    """To the last bit, with dtypes; entries that only ``b`` has are not looked at."""
    if isinstance(a, dict):
        assert a.keys() <= b.keys(), where
        for key in a:
            assert_identical(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, Tensor):
        assert isinstance(b, Tensor), where
        assert a.dtype == b.dtype, where
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Up to what another processor's vectors, or another order of sums, do in three steps."""
    for name, w in expected.items():
        torch.testing.assert_close(found[name], w, rtol=16 * torch.finfo(w.dtype).eps, atol=torch.finfo(w.dtype).eps)


@FILES
@pytest.mark.parametrize("name", DROP_IN)
def test_a_drop_in_optimizer_loads_what_earlier_code_wrote_and_goes_on(file, name):
    content = torch.load(file, weights_only=True)[name]
    dtype, make = DROP_IN[name]
    params = parameters(weights(dtype))
    opt = make(params)
    if name in ("FTPAdamW lean", "FTP without anchors", "SPD"):  # built on the first weights, which are the anchor
        play(params, opt, 0, 1)
    with torch.no_grad():
        for key, p in params.items():
            p.copy_(content["weights"][key])
    opt.load_state_dict(content["state"])
    for key, state in content["state"]["state"].items():
        assert_identical(state, opt.state_dict()["state"][key], f"{name}.{key}")
    assert_close(play(params, opt, BEFORE, AFTER), content["end"])


@FILES
@pytest.mark.parametrize("name", PURE)
def test_a_pure_optimizer_goes_on_from_the_leaves_that_earlier_code_wrote(file, name):
    content = torch.load(file, weights_only=True)[name]
    start = weights(torch.float64)
    opt = PURE[name]({key: w for key, w in start.items() if key != "free"})
    leaves, rebuild = tree.flatten(opt.init(start))
    assert [x.shape for x in leaves] == [x.shape for x in content["state"]]
    end, _ = unfold(opt, content["weights"], rebuild(content["state"]), BEFORE, AFTER)
    assert_close(end, content["end"])


@pytest.mark.parametrize("name", DROP_IN)
def test_groups_have_two_entries_of_ours(name: str):
    """torch takes flattened checkpoints apart by the entries that groups have now: another one would refuse all that
    were written before."""
    dtype, make = DROP_IN[name]
    opt = make(parameters(weights(dtype)))
    assert opt.param_groups[0].keys() - opt.defaults.keys() == {"params", "param_names", "constrained", "made_by"}
