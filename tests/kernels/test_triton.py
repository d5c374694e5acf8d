"""The Triton execution against the pure definitions, in Triton's interpreter: no GPU is needed."""

from __future__ import annotations

from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import hyperopt_ftp as hft
from hyperopt_ftp.kernels import ops
from hyperopt_ftp.kernels import triton as execution
from hyperopt_ftp.kernels.layers import SGD, Layers

from ..support.reference_runs import runs
from .interpreter import triton_kernels
from .problems import ADAMW, FEW, LR, SHAPES, Case, run, tensors


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


def test_halves_make_a_whole():
    """sgd without momentum by hand between the halves is the fused step, to the last bit where W' is."""
    torch.manual_seed(1)
    fused = Case(FEW, base=SGD(LR, 0.0, 0.0, 0.0, False))
    torch.manual_seed(1)
    halves = Case(FEW, base=SGD(LR, 0.0, 0.0, 0.0, False))
    for t in range(3):
        torch.manual_seed(t)
        fused.draw()
        torch.manual_seed(t)
        halves.draw()
        execution.step_(fused.layers, fused.base, fused.ball)
        packed = execution.radii_(halves.layers, halves.ball)
        for w, g in zip(halves.layers.weights, halves.layers.grads, strict=True):
            w.sub_(torch.tensor(LR, dtype=torch.float32) * g)
        execution.project_(halves.layers, packed, halves.ball)
    torch._foreach_add_(halves.layers.steps, 3.0)  # a base counts its own
    assert all(torch.equal(x, y) for x, y in zip(tensors(fused.layers), tensors(halves.layers), strict=True))


def test_an_unchanged_step_sends_no_table(monkeypatch: pytest.MonkeyPatch):
    sent: list[Tensor] = []
    send = execution._Run._send
    monkeypatch.setattr(execution._Run, "_send", lambda self, table: (sent.append(table), send(self, table))[1])
    execution._tables.clear()
    case = Case([(3, 16)])
    run(execution, case, steps=2)
    assert len(sent) == 2  # layers, tiles
    case.layers.grads[0] = torch.zeros(3, 16)
    run(execution, case, steps=1)
    assert len(sent) == 3, "new gradients: the layers alone"


def test_kept_tables_are_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(execution, "KEPT", 4)
    for _ in range(4):
        case = Case([(1,)])
        execution.step_(case.layers, case.base, case.ball)
    assert len(execution._tables) <= 4


def test_pinned_spares_are_bounded(monkeypatch: pytest.MonkeyPatch):
    """Tables of ever new sizes, sent by a device that only looks like one."""
    monkeypatch.setattr(execution, "KEPT", 4)
    monkeypatch.setattr(execution, "_spares", OrderedDict())
    monkeypatch.setattr(torch, "empty", lambda *shape, pin_memory=False, **how: torch.zeros(*shape, **how))
    monkeypatch.setattr(Tensor, "pin_memory", lambda table: table)
    monkeypatch.setattr(Tensor, "to", lambda table, *_, **__: table)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    run = SimpleNamespace(device=SimpleNamespace(type="cuda"))
    for size in (1, 2, 3, 4, 1, 5):
        execution._Run._send(run, torch.zeros(size, dtype=torch.uint8))  # pyright: ignore[reportArgumentType]
    assert list(execution._spares) == [3, 4, 1, 5], "those unused for longest are dropped"


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


@pytest.mark.parametrize(("index", "dtype"), [(0, torch.float64), (2, torch.float32)])  # the interpreter is slow
def test_the_classes_match_the_reference_runs(index: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    """Float64 as all executions; float32 by a step's roundings, as in tests/torch_optim."""
    monkeypatch.setattr(ops, "BEST", {"cpu": ("triton", "triton")})
    run_ = list(runs())[index]
    params = {n: torch.nn.Parameter(w.clone().to(dtype)) for n, w in run_.anchor().items()}
    make = hft.FTPAdamW if run_.adam else hft.FTPSGD
    opt = make(params.items(), exclude="head.*", kappa=run_.kappa, fused=True, **run_.kwargs)
    for t in range(min(8, run_.about["steps"])):
        for name, p in params.items():
            p.grad = run_.gradient(name, t, p)
        opt.step()
        weights, radii = run_.expected(t)
        small = 4 * 6e-8 * max(1.0, max(w.abs().max().item() for w in weights.values())) * (t + 1)
        atol = 1e-10 if dtype == torch.float64 else small + 1e-2 * (t + 1) * 2 * small / run_.kwargs["lr"]
        for name, p in params.items():
            assert (p.detach() - weights[name]).abs().max() <= atol
        if dtype == torch.float64:
            assert opt.radii() == pytest.approx({n: r.item() for n, r in radii.items()}, abs=1e-10)
    assert opt.execution == "triton"


def test_the_kernels_find_each_column_of_layers():
    """The launcher's table by the positions that the kernels read; the moments are its last columns."""
    columns = {
        "W": "weights", "G": "grads", "STEP": "steps", "W0": "anchors", "C": "deviations", "N": "norms",
        "RADIUS": "radii", "RM": "radius_exp_avgs", "RV": "radius_exp_avg_sqs", "RADIUS_STEP": "radius_steps",
    }  # fmt: skip
    assert (*columns.values(), "moments") == Layers._fields
    layers = Case([(3, 16)]).layers
    expected = {name: getattr(layers, field)[0] for name, field in columns.items()}
    expected |= dict(zip(("M", "V"), (moment[0] for moment in layers.moments), strict=True))
    (row,) = execution._addresses(layers, ADAMW)
    at = {name: getattr(triton_kernels, name).value for name in (*expected, "X")}
    assert {name: row[at[name]] for name in at} == {name: x.data_ptr() for name, x in expected.items()} | {"X": 0}
    assert len(row) == triton_kernels.ROWS.value  # sizes come next
