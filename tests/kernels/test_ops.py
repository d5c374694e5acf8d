"""The custom ops: opcheck, and the right launcher behind each."""

from __future__ import annotations

import pytest
import torch

from hyperopt_ftp.kernels import ops
from hyperopt_ftp.kernels.layers import SGD, AdamW, Ball

from .problems import LR, RADIUS_LR, Case

pytest.importorskip("numba")

CASES = {
    "adamw": {"base": AdamW(LR, 0.9, 0.99, 1e-8, 0.1), "amsgrad": True},
    "sgd": {"base": SGD(torch.tensor(LR), 0.9, 0.5, 0.1, False)},
}
SHAPES = [(5, 12), (7,), (3, 4)]


def captured(monkeypatch, call):
    """The op and the arguments that a call makes inside a graph."""
    seen = []

    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        patch.setattr(ops, "_run", lambda *arguments: seen.append((torch.ops.hyperopt_ftp.run.default, arguments)))
        call()
    return seen[0]


@pytest.mark.parametrize("name", CASES)
def test_step_passes_opcheck(name, monkeypatch):
    case = Case(SHAPES, free=(1,), zero=(2,), **CASES[name])
    case.draw()
    kernel = ops.FUSED["fused_cpu"]
    op, arguments = captured(monkeypatch, lambda: kernel.step_(case.layers, case.base, case.ball, case.amp))
    torch.library.opcheck(op, arguments)


def test_both_halves_pass_opcheck(monkeypatch):
    case, ball = Case([(5, 12), (7,)]), Ball(RADIUS_LR, 1.0, "mars", False)
    case.draw()
    kernel = ops.FUSED["fused_cpu"]
    op, arguments = captured(monkeypatch, lambda: kernel.radii_(case.layers, ball))
    torch.library.opcheck(op, arguments)
    packed = kernel.radii_(case.layers, ball)
    op, arguments = captured(monkeypatch, lambda: kernel.project_(case.layers, packed, ball))
    torch.library.opcheck(op, arguments)


@pytest.mark.parametrize("name", CASES)
def test_through_the_op_is_the_same_to_the_last_bit(name, monkeypatch):
    results = []
    for through in (False, True):
        torch.manual_seed(2)
        case = Case(SHAPES, free=(1,), zero=(2,), **CASES[name])
        for _ in range(3):
            case.draw()
            kernel = ops.FUSED["fused_cpu"]
            if through:
                op, arguments = captured(monkeypatch, lambda: kernel.step_(case.layers, case.base, case.ball, case.amp))  # noqa: B023
                op(*arguments)
            else:
                kernel.step_(case.layers, case.base, case.ball, case.amp)
        results.append(case.layers)
    for a, b in zip(results[0].weights + results[0].radii, results[1].weights + results[1].radii, strict=True):
        assert torch.equal(a, b)
