"""The benchmark of hypergradients: contenders agree, one that does not is named, processes answer."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import hyperopt_ftp as hft

np = pytest.importorskip("numpy")
pytest.importorskip("matplotlib")

from benchmarks import bench_estimate, bench_hypergradient, bench_training, bench_update  # noqa: E402
from benchmarks.hypergradient.by_autograd import by_hand  # noqa: E402
from benchmarks.hypergradient.contenders import CONTENDERS, contenders_of  # noqa: E402
from benchmarks.hypergradient.problems import PROBLEMS  # noqa: E402
from benchmarks.hypergradient.processes import off, worker  # noqa: E402
from benchmarks.hypergradient.reference import distance, reference  # noqa: E402
from benchmarks.measure import weights_of  # noqa: E402
from benchmarks.nets import NETS  # noqa: E402
from benchmarks.plain import PlainTPGM  # noqa: E402
from experiments.common.labels import apart  # noqa: E402

ROOT = Path(__file__).parent.parent

ALSO = ["jax", "jax, checkpoint", "Unroll(compile=True)", "Forward(compile=True)"]  # compile for seconds


@pytest.mark.filterwarnings("ignore")  # the peers' own
@pytest.mark.parametrize("name", ["mlp", "maml"])
def test_contenders_agree_within_what_rounding_explains(name):
    problem = PROBLEMS[name](3)
    right, tolerance = reference(problem)
    assert 1e-7 < tolerance < 1e-3
    errors = {}
    for n in contenders_of(problem):
        if n not in ALSO:
            if n == "higher" and find_spec("higher") is None:  # of the extra `bench`
                continue
            errors[n] = distance(np.asarray(CONTENDERS[n].make(problem)()), right)
    assert {"Unroll()", "torchopt", "by hand"} <= errors.keys()
    assert {n: error for n, error in errors.items() if error > tolerance} == {}
    wrong = replace(problem, lr=1.01 * problem.lr)
    assert distance(by_hand(wrong)().numpy(), right) > tolerance


def test_who_is_off_is_named():
    rows = {"higher": {"error": 2e-6}, "torchopt": {"error": 0.5e-6}, "jax": {"error": float("nan")}}
    assert off(rows | {"Implicit(iterations=100)": {"error": 1e-3}}, 1e-6) == ["higher", "jax"]


def test_a_contender_in_a_process_of_its_own():
    with worker("mlp", 2, "by hand", "time", threads=1) as own:
        assert own.answer() == "ready"
        assert own.ask("value") == pytest.approx(by_hand(PROBLEMS["mlp"](2))().tolist(), rel=1e-5)
        assert own.ask("once")["seconds"] > 0
    assert own.process.returncode == 0


def test_table_and_figure_of_what_was_measured(tmp_path, capsys):
    row = {"median_seconds": 0.5, "time_over_unroll": 1.0, "first_call_seconds": 2.0, "peak_mib": 3.0, "error": 1e-6}
    contenders = dict.fromkeys(CONTENDERS, row)
    record = {
        "machine": {"cpu": "a", "torch": "b", "date": "c"}, "what": "MLP, d/d lr", "threads": 1, "rounds": 5,
        "share_of_other_processes": 0.0, "tolerance": 1e-5, "contenders": contenders,
    }  # fmt: skip
    out = tmp_path / "found.json"
    out.write_text(json.dumps({"problems": {"mlp": record}}))
    bench_hypergradient.main(["--show", "--out", str(out)])
    assert "| Unroll() | 500.0 ms | 1.00 | 2.00 s | 3.0 MiB | 1.0e-06 |" in capsys.readouterr().out
    assert out.with_suffix(".png").stat().st_size > 10_000


def test_only_one_of_those_that_keep_all_graphs_is_in_a_long_training():
    """All are in memory at once, and 24 GiB were not enough for five of them."""
    names = set(contenders_of(PROBLEMS["conv64"](None)))
    assert names & {"torchopt", "higher", "by hand", "jax", "Unroll(checkpoint=False)"} == {"torchopt"}


def test_names_in_the_figure_do_not_overlap():
    found = apart([0.5] * 8 + [0.95, 0.95], 0.09, 0.04, 0.96)
    assert all(b - a >= 0.09 - 1e-9 for a, b in pairwise(found))
    assert max(found) <= 0.96


def test_all_updates_are_the_same():
    found, weights = bench_update.candidates(weights_of([(4,), (2, 3), ()]))
    for opt in 3 * list(found.values()):
        opt.step()
    ours, of_class, theirs = weights().values()
    for other in (ours, of_class):
        torch.testing.assert_close(list(map(torch.Tensor.detach, other)), list(map(torch.Tensor.detach, theirs)))


def test_the_page_on_cost_has_the_table_that_was_measured():
    page = (ROOT / "docs" / "concepts" / "cost.md").read_text()
    record = json.loads((ROOT / "benchmarks" / "results" / "estimate_cpu.json").read_text())
    assert bench_estimate.published(page, record) == page
    rows = record["rows"]
    assert {(row["network"], row["strategy"]) for row in rows} == {
        (n, s) for n in NETS for s in bench_estimate.STRATEGIES
    }
    assert [row for row in rows if abs(row["predicted"] / row["measured"] - 1) > 0.15] == []


def test_an_estimate_is_compared_with_what_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_estimate, "STRATEGIES", {"Unroll(checkpoint=1)": hft.Unroll(checkpoint=1)})
    out, page = tmp_path / "found.json", tmp_path / "page.md"
    page.write_text(f"before\n{bench_estimate.BEGIN}old\n{bench_estimate.END}\nafter\n")
    bench_estimate.main(["--nets", "mlp", "--steps", "4", "--size", "1", "--out", str(out), "--page", str(page)])
    (row,) = json.loads(out.read_text())["rows"]
    assert row["predicted"] == pytest.approx(row["measured"], rel=0.15)
    assert f"| mlp, `Unroll(checkpoint=1)` | {row['predicted'] / 2**20:.2f} |" in page.read_text()
    assert page.read_text().startswith("before\n")


def test_plain_tpgm_learns_its_radii_through_the_projection():
    """The first slope of a radius against central differences; then every row within its radius."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2).double()
    tpgm = PlainTPGM(model)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.data += torch.randn_like(p)
    moved = {name: p.detach().clone() for name, p in model.named_parameters()}
    x, y = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)

    def held_out(radius: float) -> float:
        weights = {}
        for name, w in moved.items():
            c = (w - start[name]).reshape(-1, 3) if name == "weight" else (w - start[name]).reshape(1, -1)
            share = (radius if name == "weight" else 1e-2) / (c.abs().sum(1, keepdim=True) + 1e-8)
            weights[name] = start[name] + (share.clamp(max=1) * c).view_as(w)
        return torch.nn.functional.mse_loss(torch.func.functional_call(model, weights, (x,)), y).item()

    tpgm.step(torch.nn.functional.mse_loss, x, y)
    slope = tpgm.radii["weight"].grad
    assert slope is not None
    # In float32 a radius of 0.01 is off by 1e-10, and its slope is rounded to 1e-7 of itself.
    assert slope.item() == pytest.approx((held_out(1e-2 + 1e-6) - held_out(1e-2 - 1e-6)) / 2e-6, rel=1e-5)
    for name, p in model.named_parameters():
        rows = (p - start[name]).reshape(-1, 3) if name == "weight" else (p - start[name]).reshape(1, -1)
        assert rows.abs().sum(1).max().item() <= max(tpgm.radii[name].item(), 1e-8) * (1 + 1e-6)
    assert tpgm.radii["weight"].item() == pytest.approx(1e-2 - 1e-2 * math.copysign(1, slope.item()), abs=1e-6)


def test_training_steps_are_those_of_what_they_stand_for(monkeypatch):
    """On a network that is small enough: each takes a step, on the path that its name says."""
    monkeypatch.setattr(bench_training, "SIDE", 8)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, bench_training.CLASSES)
    )
    found, optimizers = bench_training.candidates(net, 2)
    for step in found.values():
        step()
        step()
    assert found.keys() == {*bench_training.OPTIMIZERS, "TPGM"}
    assert optimizers["FTPAdamW (fused)"].execution == "fused_cpu"
    assert optimizers["FTPAdamW (foreach)"].execution == "foreach"
    assert {optimizers[name].execution for name in ("L2-SP", "L2-SP decoupled", "SPD")} == {"foreach"}
