"""Every pure optimizer on the device: equal to the CPU, and without a wait in an update."""

from typing import Any

import pytest
import torch

from hyperopt_ftp import tree
from tests.device.backend import waits

from ..support import cases
from ..support.cases import CASES, Case
from ..support.devices import moved, same
from ..support.problems import batches, loss, start


def built(case: Case, device: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Its anchor is on the device, its numbers on the CPU."""
    monkeypatch.setattr(cases, "ANCHOR", moved(cases.ANCHOR, device))
    return case.build()


def updated(opt: Any, device: str, hparams: Any = None, steps: int = 3) -> Any:
    params, data = moved(start(), device), moved(batches(steps), device)
    state = opt.init(params, hparams)
    for batch in data:
        params, state = opt.update(torch.func.grad(loss)(params, batch), state, params, hparams)
    return params, state


@pytest.mark.parametrize("numbers", ["cpu", "sim"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_updates_are_those_of_the_cpu(case: Case, numbers: str, monkeypatch: pytest.MonkeyPatch):
    want = updated(built(case, "cpu", monkeypatch), "cpu")
    opt = built(case, "sim", monkeypatch)
    params, state = updated(opt, "sim", moved(opt.hparams, numbers))
    assert all(w.device.type == "sim" for w in tree.leaves(params))
    same((params, state), want)


@pytest.mark.parametrize("numbers", ["cpu", "sim"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_update_does_not_wait(case: Case, numbers: str, monkeypatch: pytest.MonkeyPatch):
    opt = built(case, "sim", monkeypatch)
    hparams = moved(opt.hparams, numbers)
    params, state = updated(opt, "sim", hparams, 1)
    grads = torch.func.grad(loss)(params, moved(batches(1)[0], "sim"))
    with waits() as found:
        opt.update(grads, state, params, hparams)
    # The derivative in a tuned number of the CPU goes there: one for each way that it is used.
    assert sum(found.values()) == (2 if (case.name, numbers) == ("hyper", "cpu") else 0), found
