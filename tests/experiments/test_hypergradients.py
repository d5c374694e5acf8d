"""The hypergradient study: what is compared is what it says, and a run ends the same when it is stopped."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

import hyperopt_ftp as hft
from experiments.common.bilevel_loop import Losses
from experiments.hypergradients import gradients
from experiments.hypergradients.gradients import agreement, closed_form, full, walk
from experiments.hypergradients.report import compared
from experiments.hypergradients.report import costs as table_of_costs
from experiments.hypergradients.study import main

TINY = ["--limit", "48", "--batch-size", "4", "--epochs", "2", "--anchor-epochs", "1", "--seeds", "0"]
TINY += ["--points", "2", "4", "--depths", "1", "2", "--device", "cpu"]


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


def test_every_strategy_finds_the_same(segment):
    made, losses, *_ = segment
    found = {name: gradients.cost(made, losses, (1, 2, 4), name) for name in gradients.STRATEGIES}
    for cost in found.values():
        assert cost["depths"] == [1, 2, 4]
        assert len(cost["seconds"]) == len(cost["mib"]) == len(cost["differs"]) == len(cost["depths"])
        assert max(cost["differs"]) < 1e-12  # float64: other orders of the same sums
    results = {f"cost {name}": cost for name, cost in found.items()}
    _, rows = table_of_costs({"results": {"point-2": {}, **results}})
    assert [(row[0], row[1]) for row in rows] == [
        *(("`Unroll()`", depth) for depth in "124"),
        *(('`Unroll(checkpoint="sqrt")`', depth) for depth in "124"),
        *(("`Forward()`", depth) for depth in "124"),
    ]


def test_a_cost_is_of_another_gradient_where_one_is(segment, monkeypatch):
    made, losses, *_ = segment
    monkeypatch.setitem(gradients.STRATEGIES, "Unroll()", hft.Unroll(truncate=1))
    one, four = (torch.stack(list(full(made, losses, "training", depth).values())) for depth in (1, 4))
    off = ((one - four).norm() / four.norm()).item()  # truncated, four steps are one
    assert off > 0.01
    assert gradients.cost(made, losses, (1, 4), "Unroll()")["differs"] == [0.0, pytest.approx(off)]


def run(*arguments: str, interrupt: tuple[str, int] | None = None) -> int:
    def on_step(name: str, step: int) -> None:
        if (name, step) == interrupt:
            raise KeyboardInterrupt

    return main([*TINY, *arguments], on_step=on_step)


def numbers(folder: Path) -> dict:
    """All that was measured but times and memory."""
    results = json.loads((folder / "metrics.json").read_text())["results"]
    return {
        name: {key: value for key, value in result.items() if key not in ("seconds", "mib")}
        for name, result in results.items()
        if "in the time of" not in name  # how many steps that is depends on the machine
    }


def test_a_run_and_one_that_is_stopped_measure_the_same(workplace, capsys):
    ways = ("--ways", "paper", "validation1", "--ways-epochs", "1")
    assert run(*ways, "--out", "runs/whole") == 0
    content = json.loads(Path("runs/whole/metrics.json").read_text())
    assert content["status"] == "finished"
    layers = content["results"]["run"]["layers"]
    assert "network._fc.weight" in layers
    assert [content["results"][f"point-{step}"]["step"] for step in (2, 4)] == [2, 4]
    for point in ("point-2", "point-4"):
        kinds = content["results"][point]["gradients"]["training"]
        assert {kind: len(values) for kind, values in kinds.items()} == dict.fromkeys(kinds, len(layers))
        assert kinds["exact"] == pytest.approx(kinds["K=1"], rel=1e-3, abs=1e-4)  # float32
    steps = {name: result["steps"] for name, result in content["results"].items() if name.endswith("seed0")}
    assert steps == {"paper-seed0": 4, "validation1-seed0": 4}
    logs = {file.stem: file.read_text().count("\n") - 1 for file in Path("runs/whole/steps").glob("*.csv")}
    assert (logs["run"], logs["paper-seed0"], logs["validation1-seed0"]) == (8, 4, 4)
    report = Path("runs/whole/report.md").read_text()
    figures = {file.name for file in Path("runs/whole").glob("*.png")}
    assert figures == {"agreement-by-depth.png", "agreement-by-step.png", "cost.png", "layers.png", "radii.png"}
    assert all(name in report for name in figures)
    header, rows = compared(content)
    assert "What a full hypergradient costs" not in report
    deepest = dict(zip(header, rows[3], strict=False))  # a gradient agrees with itself
    assert (deepest[header[0]], deepest["cosine with K = 2, training"]) == ("full, K = 2, training", "1.00")

    for interrupt in (("run", 3), ("validation1-seed0", 3)):
        assert run(*ways, "--out", "runs/broken", interrupt=interrupt) == 130
    assert run(*ways, "--out", "runs/broken") == 0
    assert numbers(Path("runs/broken")) == numbers(Path("runs/whole"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--points", "4", "2"], "--points 4 2: give different integers of at least 1, in rising order"),
        (["--depths", "0", "1"], "--depths 0 1"),
        (["--depths", "2", "4"], "--depths 2 4: must begin with 1"),
        (["--ways", "paper", "paper"], "--ways paper paper: give any of"),
        (["--points", "2", "7"], "--points 2 7: 2 steps are made from step 7 on, but the run has 8 (--epochs 2)"),
        (["--ways", "train4", "--ways-epochs", "1"], "--ways-epochs 1: 4 steps, but --ways need 8"),
        (["--ways", "train4", "--ways-epochs", "0"], "--ways-epochs 0: must be an integer of at least 1"),
    ],
)
def test_unusable_options(workplace, capsys, arguments, message):
    assert run(*arguments, "--out", "runs/refused") == 2
    assert message in capsys.readouterr().err
