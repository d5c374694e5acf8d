"""The Triton execution against the pure definitions, in Triton's interpreter: no GPU is needed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hyperopt_ftp.kernels import triton as execution

from .interpreter import triton_kernels
from .problems import SHAPES, Case, run


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels that are launched."""
    seen: list[str] = []
    launch = execution._Run.launch
    monkeypatch.setattr(execution._Run, "launch", lambda run, *names: (seen.extend(names), launch(run, *names))[0])
    return seen


def test_every_shape_in_one_call_of_four_launches(launches: list):
    case = Case(SHAPES, free=(4,), zero=(3,))
    run(execution, case, steps=1)
    assert launches == ["partials", "radii", "move", "clip"]
    grads = case.draw()
    execution.step_(case.layers, case.base, case.ball)
    case.pure_step(grads)
    case.compare(2)
    assert len(launches) == 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_addresses_that_are_no_multiple_of_16_bytes(dtype: torch.dtype):
    def layout(i: int, x: Tensor) -> Tensor:
        return torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape).copy_(x)

    run(execution, Case([(3, 16), (10, 128), (2, 1024), (1, 4096)], dtype, layout=layout))


@pytest.mark.parametrize("options", [{}, {"lean": True}, {"dtype": torch.bfloat16}, {"free": (0,)}])
def test_rows_and_layers_of_many_turns(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(triton_kernels, "BLOCK", triton_kernels.tl.constexpr(4))
    run(execution, Case([(6, 9), (9,), (5, 8)], **options))
