"""The hypergradient study: what is compared is what it says, and a run ends the same when it is stopped."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

import hyperopt_ftp as hft
from experiments.common.bilevel_loop import Losses
from experiments.hypergradients import comparing, gradients, report
from experiments.hypergradients.comparing import Tasks, gradient_study
from experiments.hypergradients.config import Plan
from experiments.hypergradients.gradients import agreement, closed_form, full, walk
from experiments.hypergradients.report import Subject, compared

from . import small_task
from .running import ran, results
from .small_task import Config as Points


def test_agreement_by_hand():
    same = agreement([3.0, -4.0], [6.0, -8.0])
    assert same == (pytest.approx(1), 1, pytest.approx(0.5))
    crossed = agreement([1.0, 0.0, -1.0, 1.0], [1.0, 0.0, 1.0, 0.0])
    assert crossed == (pytest.approx(0), 0.5, pytest.approx(math.sqrt(1.5)))
    assert all(map(math.isnan, agreement([0.0], [1.0])))


class Regression:
    """As much of a task as the losses ask for."""

    def loss(self, outputs, targets):
        return ((outputs - targets) ** 2).mean()


@pytest.fixture
def segment():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    losses = Losses(model, Regression())  # pyright: ignore[reportArgumentType]
    anchor = {name: p.detach().clone() for name, p in model.named_parameters()}
    batches = [(torch.randn(7, 5).double(), torch.randn(7, 2).double()) for _ in range(6)]
    base = hft.adamw(lr=0.05, weight_decay=0.1)
    params = {name: p + 0.05 * torch.randn_like(p) for name, p in anchor.items()}
    # Between the smallest and the largest row, so that some are clipped and some are not.
    radius = {
        name: torch.tensor(0.3 if p.ndim > 1 else 0.15, dtype=torch.float64) for name, p in params.items()
    }  # fmt: skip
    outer = {"training": lambda p: losses.train(p, batches[5]), "validation": lambda p: losses.held_out(p, batches[4])}
    made = walk(base, anchor, radius, params, base.init(params), losses, batches[:4], outer, (1, 2, 4))
    return made, losses, params, batches


def test_the_exact_closed_form_is_the_full_one_through_one_step(segment):
    made, losses, *_ = segment
    for loss in ("training", "validation"):
        exact, paper, one = (
            closed_form(made, loss, "exact"),
            closed_form(made, loss, "paper"),
            full(made, losses, loss, 1),
        )
        for name, value in one.items():
            torch.testing.assert_close(exact[name], value, rtol=1e-12, atol=1e-12)
        assert any(abs(paper[name] - exact[name]) > 1e-3 for name in exact)  # some rows are not clipped


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_a_depth_is_the_same_as_truncation(segment, depth):
    made, losses, params, batches = segment
    _, expected, (end, _) = hft.hypergradient(
        made.optimizer, losses.train, made.outer["validation"], params, batches[:4], over="radius",
        state=made.states[0], strategy=hft.Unroll(truncate=depth),
    )  # fmt: skip
    found = full(made, losses, "validation", depth)
    for name, value in expected["radius"].items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(made.end[name], end[name], rtol=1e-12, atol=1e-12)


@dataclass(frozen=True)
class Config(Plan, Points):
    lr: float = 0.02
    points: tuple[int, ...] = (2, 3)
    depths: tuple[int, ...] = (1, 2)
    ways_epochs: int = 2

    def check(self) -> None:
        super().check()
        self.check_plan()


STUDY = gradient_study(
    "points", "points", "a small network", Config,
    lambda config, cache, progress: Tasks(small_task.Points(), small_task.Points(dropout=0.0)),
    lambda task: {"points": len(task.x)}, (),
    Subject("A network", lambda data: ("points", "points"), {"styles": "an anchor"}),
)  # fmt: skip


def test_a_run_and_one_that_is_stopped_measure_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "curves", lambda *_, **__: None)
    monkeypatch.setattr(gradients, "peak_above", lambda device, work: (work(), 0.0))  # which collects all garbage
    monkeypatch.setattr(comparing, "within_time", lambda way, setting: 8)  # else as many as the machine makes
    ways = ("--ways", "paper", "validation1", "train4", "--ways-epochs", "4", "--epochs", "3")
    assert ran(STUDY, *ways, "--out", "whole").status == 0
    found = results(Path("whole"))
    for point in ("point-2", "point-3"):
        kinds, layers = found[point]["gradients"]["training"], found[point]["layers"]
        assert "fc.weight" in layers
        assert {kind: len(values) for kind, values in kinds.items()} == dict.fromkeys(kinds, len(layers))
        assert kinds["exact"] == pytest.approx(kinds["K=1"], rel=1e-3, abs=1e-4)  # float32
    steps = {name: result["steps"] for name, result in found.items() if name.endswith("seed0")}
    assert steps == {"paper-seed0": 8, "validation1-seed0": 8, "train4-seed0": 8}
    assert {name for name in found if "in the time of" in name} == {
        f"{way}-seed0-in the time of FTP" for way in ("validation1", "train4")
    }
    written = Path("whole/report.md").read_text()
    assert "(agreement-by-depth.png)" in written
    assert "| FTP, paper | equal steps | 8 |" in written
    header, rows = compared(json.loads(Path("whole/metrics.json").read_text()))
    deepest = dict(zip(header, rows[3], strict=False))  # a gradient agrees with itself
    assert (deepest[header[0]], deepest["cosine with K = 2, training"]) == ("full, K = 2, training", "1.00")
    for stop in (("run", 3), ("validation1-seed0", 3)):

        def on_step(name: str, step: int, stop=stop) -> None:
            if (name, step) == stop:
                raise KeyboardInterrupt

        assert ran(STUDY, *ways, "--out", "broken", on_step=on_step).status == 130
    assert ran(STUDY, *ways, "--out", "broken").status == 0
    assert results(Path("broken"), "mib") == results(Path("whole"), "mib")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--points", "2", "7"), "--points 2 7: 2 steps are made from step 7 on, but the run has 4 (--epochs 2)"),
        (("--epochs", "3", "--ways", "train4", "--ways-epochs", "2"), "--ways-epochs 2: 4 steps, but --ways need 8"),
    ],
)
def test_what_does_not_fit_into_the_schedules_is_refused(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert ran(STUDY, *arguments, "--out", "refused").status == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not Path("refused").exists()
