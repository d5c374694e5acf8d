"""A committed checkpoint of the present format: code that cannot go on from it needs another format number.

``python -m tests.torch_optim.test_format`` writes the file of a new format; one that is there is never written again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hyperopt_ftp as hft

from ..support.compare import same
from ..support.contract import through_a_file

FILE = Path(__file__).parents[1] / "reference" / "checkpoints" / "format1.pt"
SHAPES = {"weight": (4, 3), "bias": (5,), "free": (2, 2)}
MAKES = {
    "FTPAdamW": lambda p: hft.FTPAdamW(p, 0.05, weight_decay=0.1, amsgrad=True, exclude="free"),
    "FTPSGD": lambda p: hft.FTPSGD(p, 0.05, momentum=0.9, anchor="zero"),
    "FTP": lambda p: hft.FTP(torch.optim.AdamW(p, lr=0.05), anchor=numbers(0), save_anchor=False),
    "DiGraP": lambda p: hft.DiGraP(torch.optim.SGD(p, lr=0.05, momentum=0.9), omega_lr=0.1, exclude="free"),
    "PureOptimizer": lambda p: hft.PureOptimizer(p, hft.ftp(hft.adamw(lr=0.05), numbers(0))),
}


def numbers(seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=g) for name, shape in SHAPES.items()}


def play(params: dict[str, Any], opt: Any, steps: range) -> dict[str, Tensor]:
    for t in steps:
        for name, grad in numbers(100 + t).items():
            params[name].grad = grad + 0.3
        opt.step()
    return {name: p.detach().clone() for name, p in params.items()}


def begin(name: str) -> tuple[dict[str, Any], Any]:
    params = {n: torch.nn.Parameter(w) for n, w in numbers(0).items()}
    return params, MAKES[name](params.items())


@pytest.mark.parametrize("name", MAKES)
def test_a_checkpoint_of_the_present_format_is_gone_on_with(name: str):
    saved = torch.load(FILE, weights_only=True)[name]
    params, opt = begin(name)
    for n, p in params.items():
        p.data.copy_(saved["weights"][n])
    opt.load_state_dict(saved["state"])
    assert same(opt.state_dict()["state"], saved["state"]["state"])
    for n, w in play(params, opt, range(5, 8)).items():  # another processor's vectors add up in another order
        torch.testing.assert_close(w, saved["end"][n], rtol=16 * torch.finfo(w.dtype).eps, atol=2**-23)


@pytest.mark.parametrize("name", [name for name in MAKES if name != "PureOptimizer"])
def test_groups_have_two_entries_of_ours(name: str):
    """torch takes flattened checkpoints apart by the entries that groups have now: another one would refuse all that
    were written before."""
    _, opt = begin(name)
    assert opt.param_groups[0].keys() - opt.defaults.keys() == {"params", "param_names", "constrained", "made_by"}


if __name__ == "__main__":
    if FILE.exists():
        raise SystemExit(f"{FILE} exists: a new format has a new number")
    found = {}
    for title in MAKES:
        model, made = begin(title)
        there = {"weights": play(model, made, range(5)), "state": through_a_file(made.state_dict())}
        found[title] = there | {"end": play(model, made, range(5, 8))}
    torch.save(found, FILE)
