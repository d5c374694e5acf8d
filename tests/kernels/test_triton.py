"""The Triton execution against the pure definitions, in Triton's interpreter: no GPU is needed."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor

import hyperopt_ftp as hft
from hyperopt_ftp.kernels import triton as execution

from ..support.reference_runs import runs
from .interpreter import triton_kernels
from .problems import SHAPES, Case, run


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels that are launched."""
    seen: list[str] = []
    launch = execution._Run._launch

    def spy(self: Any, name: str, first: int | None = None) -> None:
        if first is None or first < len(self.layout.tiles):
            seen.append(name)
        launch(self, name, first)

    monkeypatch.setattr(execution._Run, "_launch", spy)
    return seen


def kinds(case: Case) -> set[int | str]:
    """Kinds of the tiles of whole rows, and of pieces."""
    addresses = execution._addresses(case.layers, case.base)
    layout = execution._layout(execution._shapes(case.layers, addresses, case.base, square=False))
    whole, pieces = layout.tiles[: layout.long, 3], layout.tiles[layout.long :, 3]
    return {*whole.tolist(), *(f"piece {kind}" for kind in pieces.tolist())}


def test_every_shape_in_one_call_of_six_launches(launches: list):
    case = Case(SHAPES, free=(4,), zero=(3,))
    run(execution, case, steps=1)
    assert launches == ["partials", "radii", "move", "long_norms", "finish", "clip"]
    assert kinds(case) == {*range(9), "piece 6", "piece 7"}, "every branch of the kernels has to run"
    for t in (2, 3):
        grads = case.draw()
        execution.step_(case.layers, case.base, case.ball)
        case.pure_step(grads)
        case.compare(t)
    assert len(launches) == 18


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_addresses_that_are_no_multiple_of_16_bytes(dtype: torch.dtype):
    def layout(i: int, x: Tensor) -> Tensor:
        return torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape).copy_(x)

    case = Case([(3, 16), (10, 128), (2, 1024), (1, 2048), (1, 4096)], dtype, layout=layout)
    run(execution, case)
    assert kinds(case) == {1, 3, 5, 7, "piece 7"}


@pytest.mark.parametrize("options", [{}, {"lean": True}, {"dtype": torch.bfloat16}, {"free": (0,)}])
def test_rows_of_more_pieces_than_a_turn(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(triton_kernels, "TURN", triton_kernels.tl.constexpr(2))
    run(execution, Case([(1, 2048 * 3 + 16), (2, 6001)], **options), steps=2)


def test_launches_by_the_dtype_of_anchors(launches: list):
    """Layers without an anchor go with the first that has one."""
    case = Case([(3, 16)] * 4, anchor_dtypes=(torch.float32, torch.bfloat16), zero=(0,), free=(3,))
    run(execution, case, steps=1)
    assert launches.count("move") == 2
    assert execution.by_anchor_dtype(case.layers) == [[0, 1, 3], [2]]


def test_kept_tables_are_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(execution, "KEPT", 4)
    for _ in range(4):
        case = Case([(1,)])
        execution.step_(case.layers, case.base, case.ball)
    assert len(execution._tables) <= 4


def test_what_a_graph_reads_goes_with_the_weights_that_it_writes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(execution, "_captured", [])
    monkeypatch.setattr(execution, "_tables", OrderedDict())

    def captured() -> Case:
        case = Case([(3, 16)])
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "is_available", lambda: True)
            patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
            execution.step_(case.layers, case.base, case.ball)
        return case

    first = captured()
    assert len(execution._captured) == 2  # layers, tiles
    assert not execution._tables, "a graph fills them at its replays alone"
    second = captured()
    assert len(execution._captured) == 4
    del first, second
    third = captured()
    assert len(execution._captured) == 2
    assert third.layers.steps[0] == 1


@pytest.mark.parametrize("index", [0, 2])  # the interpreter is slow
def test_the_classes_match_the_reference_runs(index: int, monkeypatch: pytest.MonkeyPatch):
    """In float64, as all executions do in tests/torch_optim."""
    monkeypatch.setattr("hyperopt_ftp.kernels.ops.BEST", {"cpu": ("triton", "triton")})
    run_ = list(runs())[index]
    params = {n: torch.nn.Parameter(w.clone()) for n, w in run_.anchor().items()}
    make = hft.FTPAdamW if run_.adam else hft.FTPSGD
    opt = make(params.items(), exclude="head.*", kappa=run_.kappa, fused=True, **run_.kwargs)
    for t in range(min(8, run_.about["steps"])):
        for name, p in params.items():
            p.grad = run_.gradient(name, t, p)
        opt.step()
        weights, radii = run_.expected(t)
        for name, p in params.items():
            assert (p.detach() - weights[name]).abs().max() <= 1e-10
        assert opt.radii() == pytest.approx({n: r.item() for n, r in radii.items()}, abs=1e-10)
    assert opt.execution == "triton"
