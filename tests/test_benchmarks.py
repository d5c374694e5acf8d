"""Benchmarks: contenders agree, one that does not is named, processes answer; `large` on a tiny encoder."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import hyperopt_ftp as hft
from benchmarks import bench_estimate, bench_hypergradient, bench_training, bench_triton, bench_update
from benchmarks.hypergradient.by_autograd import by_hand
from benchmarks.hypergradient.contenders import CONTENDERS, contenders_of
from benchmarks.hypergradient.problems import PROBLEMS
from benchmarks.hypergradient.processes import off, worker
from benchmarks.hypergradient.reference import distance, reference
from benchmarks.large import contenders, peers, product
from benchmarks.large.contenders import PLAIN, by_library
from benchmarks.large.contenders import by_hand as by_plain_loop
from benchmarks.large.peers import by_higher, by_torchopt
from benchmarks.large.processes import compare, draw, merged, peaks, table
from benchmarks.large.task import Data, Encoder, drawn, losses_of
from benchmarks.measure import weights_of
from benchmarks.meta import implicit_maml, programs
from benchmarks.meta.lines import lines_of
from benchmarks.plain import PlainTPGM
from experiments.common.labels import apart

#: They compile for seconds.
ALSO = ["jax", "jax, checkpoint", "jax, forward", "Unroll(compile=True)", "Forward(compile=True)"]


@pytest.mark.filterwarnings("ignore")  # the peers' own
@pytest.mark.parametrize("name", ["mlp", "maml"])
def test_contenders_agree_within_what_rounding_explains(name):
    problem = PROBLEMS[name](3)
    right, tolerance = reference(problem)
    assert 1e-7 < tolerance < 1e-3
    errors = {}
    for n in contenders_of(problem):
        if n not in ALSO:
            peer = n.partition(",")[0]
            if peer in ("higher", "jax") and find_spec(peer) is None:  # of the extra `bench`
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


def test_an_estimate_is_compared_with_what_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_estimate, "STRATEGIES", {"Unroll(checkpoint=1)": hft.Unroll(checkpoint=1)})
    out, page = tmp_path / "found.json", tmp_path / "page.md"
    page.write_text("before\n<!-- bench_estimate -->\nold\n<!-- end of bench_estimate -->\nafter\n")
    bench_estimate.main(["--nets", "mlp", "--steps", "4", "--size", "1", "--out", str(out), "--page", str(page)])
    (row,) = json.loads(out.read_text())["rows"]
    assert row["predicted"] == pytest.approx(row["measured"], rel=0.15)
    assert f"| mlp, `Unroll(checkpoint=1)` | {row['predicted'] / 2**20:.2f} |" in page.read_text()
    assert page.read_text().startswith("before\n")


def test_the_time_of_a_step_is_predicted_from_its_bytes():
    kernels = json.loads(Path("benchmarks/results/triton.json").read_text())["kernels"]
    # Reads g, c; W, g, m, v, W0; writes m, v, c, W. Then W, W0 and W again.
    assert bench_triton.moved(kernels, "adamw") == (44, 56)
    assert bench_triton.moved(kernels, "lean") == (40, 52)  # c in two bytes
    assert bench_triton.moved(kernels, "sgd") == (36, 48)  # a moment less; products are those of adamw
    rows = bench_triton.predictions(kernels, {"one": 1_000_000_000})
    assert {row["card"]: row["ms"][0] for row in rows if row["optimizer"] == "FTPAdamW(fused)"} == pytest.approx(
        {"A100": 44e9 / 2039e9 * 1e3, "H100": 44e9 / 3350e9 * 1e3}
    )


def test_steps_of_a_gpu_are_compared_with_what_was_predicted():
    kernels = json.loads(Path("benchmarks/results/triton.json").read_text())["kernels"]
    record = json.loads(Path("benchmarks/results/step_cpu.json").read_text())  # as bench_step writes it
    assert "no GPU" in bench_triton.compared(kernels, record)
    for row in record["models"].values():
        row["parameters"] = 3_350_000
        row["steps"]["FTPAdamW(fused)"]["median_ms"] = 0.088
    record["machine"]["cuda"] = "NVIDIA H100 80GB HBM3"
    lines = [line.split() for line in bench_triton.compared(kernels, record).splitlines()]
    assert lines[1][:3] == [
        "vit_b_16",
        "AdamW(fused)",
        f"{record['models']['vit_b_16']['steps']['AdamW(fused)']['median_ms']:.3f}",
    ]
    assert lines[2] == ["vit_b_16", "FTPAdamW(fused)", "0.088", "0.044", "to", "0.056", "1.57", "to", "2.00"]
    assert len(lines) == 1 + 5 * len(record["models"])


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
    assert {optimizers[name].execution for name in ("L2-SP", "L2-SP decoupled", "SPD")} == {"pieces"}


# -- meta-learning ----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # the peers' own, and that five products do not solve a system
@pytest.mark.parametrize("program", programs.PROGRAMS)
def test_equal_programs_reach_equal_scores(program, monkeypatch):
    monkeypatch.setattr(implicit_maml, "STEPS", 10)
    names = [name for name in programs.contenders_of(program) if name != "ours, compiled"]  # it compiles for seconds
    assert {"ours", "TorchOpt"} <= {*names}
    rows = {name: programs.scored(program, 2, programs.begun(program, name)) for name in names}
    assert programs.off(rows) == [], rows


def test_who_has_another_score_is_named():
    rows = {name: {"score": x, "rounding": 1e-4} for name, x in {"ours": -2.0, "a": -2.0001, "b": -2.001}.items()}
    rows["c"] = {"score": float("nan"), "rounding": 1e-4}
    assert programs.off(rows) == ["b", "c"]


def test_lines_are_those_of_code():
    def function(x):
        """Two lines
        of words.
        """
        import math

        # a remark
        return [
            math.sqrt(x)  # another
        ]

    assert lines_of(function) == 4


# -- larger models -----------------------------------------------------------------------------------------------------

WIDTH, WORDS, STEPS = 8, 11, 5


class Layer(nn.Module):
    """Attention of two heads, and a network behind it; both with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm, self.dropout = nn.LayerNorm(WIDTH), nn.Dropout(0.2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.into(x).unflatten(-1, (3, 2, WIDTH // 2)).permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(q, k, v, mask, dropout_p=0.2 if self.training else 0.0)
        return self.norm(x + self.dropout(self.out(nn.functional.gelu(seen.transpose(1, 2).flatten(2)))))


def tiny(training: bool) -> tuple[Encoder, Data]:
    torch.manual_seed(0)
    net = Encoder(nn.Embedding(WORDS, WIDTH), [Layer(), Layer()], WIDTH).double().train(training)
    return net, drawn(WORDS, STEPS, size=3, length=26)


def right(training: bool) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return by_plain_loop(*tiny(training))()


@pytest.mark.parametrize(
    ("strategy", "training", "again"),
    [
        (hft.Unroll(), True, False),
        (hft.Unroll(checkpoint="sqrt"), True, True),
        (hft.Unroll(memory=1_200_000), False, False),
        (None, True, True),  # the plain loop itself, with activations made again
    ],
    ids=str,
)
def test_hypergradient_is_that_of_the_plain_loop(strategy, training, again):
    torch.manual_seed(1)
    given = tiny(training)
    found = (by_library(*given, strategy, again=again) if strategy else by_plain_loop(*given, again=again))()
    expected = right(training)
    assert {kind: x.numel() for kind, x in found.items()} == {"lr": 4, "weight": 3 * STEPS}
    for kind, value in expected.items():
        assert value.abs().min() > 0
        torch.testing.assert_close(found[kind], value, rtol=1e-8, atol=1e-9 * float(value.abs().max()))


@pytest.mark.parametrize(
    ("name", "by", "close"), [("torchopt", by_torchopt, 1e-4), ("higher", by_higher, 1e-3)], ids=["TorchOpt", "higher"]
)
def test_so_it_is_by_other_libraries(name, by, close, monkeypatch):
    """TorchOpt takes 1 - 0.999^k in float32; higher 1e-8 for a second moment of zero, and adds eps in another place."""
    pytest.importorskip(name)
    for module in (contenders, peers):
        monkeypatch.setattr(module, "EPS", 1e-12)
        monkeypatch.setattr(module, "EPS_ROOT", 1e-18)
    torch.manual_seed(1)
    found = by(*tiny(True))()
    for kind, value in right(True).items():
        assert (found[kind] - value).abs().max() <= close * value.abs().max()


def test_a_product_of_recomputed_layers_is_measured(tmp_path):
    rows = {kind: product.measured("deep", kind, 1, 64, by_allocator=True) for kind in product.KINDS}
    assert rows["today"]["bytes"] > 1.3 * rows["remat"]["bytes"]
    both = {k: {"resident": row["bytes"], "allocated": row["bytes"], "seconds": 1.0} for k, row in rows.items()}
    product.draw({"64": both}, "deep", tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000
    assert "| 64 | " in product.table({"64": both})


def test_bfloat16_is_autocast():
    """Numbers have 8 bits, and the loss of a few layers is a few units of the last of them off."""
    net, data = tiny(False)
    params = {name: p.detach().float() for name, p in net.named_parameters()}
    narrow, wide = (losses_of(net, narrow=on)[1](params, data.held_out) for on in (True, False))
    assert narrow.dtype == torch.float32
    assert 0 < abs(narrow - wide) < 2**-6 * wide


def test_each_is_compared_with_the_plain_loop():
    rows = {
        name: {"median_seconds": 2.0 * n, "peak_bytes": n * 2**30, "value": {"lr": [n, 8.0]}}
        for n, name in enumerate((PLAIN, "Unroll(1)"), 1)
    }
    rows["Unroll(log)"] = {"died": "1 GiB was too few"}
    compare(rows)
    found = rows["Unroll(1)"]
    assert [found[f"{what}_over_plain"] for what in ("time", "peak")] == [2.0, 2.0]
    assert found["difference"] == 0.125
    for row in rows.values():
        row["share_of_other_processes"] = 0.02
    record = {"steps": 3, "size": 2, "length": 4, "threads": 1, "limit": 2**30, "contenders": rows}
    assert "| Unroll(1) | 2.00 GiB | 2.00 | 4.0 s | 2.00 | 1.2e-01 |" in table(record)
    assert "| Unroll(log) | died: 1 GiB was too few |" in table(record)
    alone = table(record | {"contenders": {"Unroll(log)": rows["Unroll(log)"]}})  # without empty columns
    assert alone.endswith("|  | peak |\n|---|--:|\n| Unroll(log) | died: 1 GiB was too few |")


def test_peaks_alone_of_several_jobs(tmp_path):
    job = {"net": "minilm", "steps": 3, "size": 2, "length": 4, "limit": 2**30}
    first = {**job, "contenders": {PLAIN: {"died": "1 GiB was too few"}, "Unroll(1)": {"peak_bytes": 2**29}}}
    longer = {**job, "length": 8, "contenders": {"Unroll(1)": {"peak_bytes": 2**28}}}
    runs = merged([longer], first)
    assert runs == [first, longer]
    assert merged(runs, {**longer, "limit": 2}) == [first, {**longer, "limit": 2}]
    assert f"|  | {PLAIN} | Unroll(1) |" in peaks(runs)
    assert "| minilm, 3 steps of 2 x 4 | over 1 GiB | 0.50 GiB |" in peaks(runs)
    assert "| minilm, 3 steps of 2 x 8 |  | 0.25 GiB |" in peaks(runs)
    draw(runs, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000
