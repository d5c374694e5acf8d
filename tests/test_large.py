"""The benchmark of larger models: on a tiny encoder, all contenders have the hypergradient of the plain loop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import hyperopt_ftp as hft
from benchmarks.large import contenders
from benchmarks.large.contenders import CONTENDERS, PLAIN, by_hand, by_library
from benchmarks.large.processes import compare, distance, table
from benchmarks.large.task import Data, Encoder, drawn, losses_of, part_of

ROOT = Path(__file__).parent.parent
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
    return by_hand(*tiny(training))()


STRATEGIES = {
    "()": hft.Unroll(),
    "1": hft.Unroll(checkpoint=1),
    "sqrt": hft.Unroll(checkpoint="sqrt"),
    "log": hft.Unroll(checkpoint="log"),
    "offload": hft.Unroll(checkpoint="sqrt", offload=True),
    "all graphs": hft.Unroll(checkpoint="auto", memory=2**30),
    "few points": hft.Unroll(checkpoint="auto", memory=1_200_000),
}


@pytest.mark.parametrize(
    ("strategy", "training", "again"),
    [pytest.param(strategy, i % 2 == 0, i % 3 == 0, id=name) for i, (name, strategy) in enumerate(STRATEGIES.items())],
)
def test_hypergradient_is_that_of_the_plain_loop(strategy, training, again):
    torch.manual_seed(1)
    found = by_library(*tiny(training), strategy, again=again)()
    expected = right(training)
    assert {kind: x.numel() for kind, x in found.items()} == {"lr": 4, "weight": 3 * STEPS}
    for kind, value in expected.items():
        assert value.abs().min() > 0
        torch.testing.assert_close(found[kind], value, rtol=1e-8, atol=1e-9 * float(value.abs().max()))


def test_dropout_counts():
    assert distance(*({k: x.tolist() for k, x in right(training).items()} for training in (True, False))) > 1e-3


def test_plain_loop_with_activations_made_again_is_the_same():
    torch.manual_seed(1)
    found = by_hand(*tiny(True), again=True)()
    for kind, value in right(True).items():
        torch.testing.assert_close(found[kind], value, rtol=1e-8, atol=1e-9 * float(value.abs().max()))


@pytest.mark.parametrize("kind", ["lr", "weight"])
def test_plain_loop_has_the_derivative_by_central_differences(kind):
    """Of the first number of a kind; the differences are those of the library's trainings."""
    net, data = tiny(False)
    train_loss, held_out_loss = losses_of(net)

    @torch.no_grad()
    def value(shift: float) -> float:
        params, numbers = contenders.start(net, data)
        if kind == "lr":
            numbers.lr["embed"] += shift
        else:
            numbers.weight[0] += shift
        opt = contenders.optimizer()
        hparams = {**opt.hparams, "lr": contenders.of_each(params, numbers), "loss": {"weight": numbers.weight}}
        return held_out_loss(hft.train(opt, train_loss, params, data.batches, hparams=hparams).params, data.held_out)

    step = {"lr": 1e-8, "weight": 1e-5}[kind]
    difference = float(value(step) - value(-step)) / (2 * step)
    assert difference == pytest.approx(float(right(False)[kind][0]), rel=1e-3)


def test_bfloat16_is_autocast():
    """Numbers have 8 bits, and the loss of a few layers is a few units of the last of them off."""
    net, data = tiny(False)
    params = {name: p.detach().float() for name, p in net.named_parameters()}
    narrow, wide = (losses_of(net, narrow=on)[1](params, data.held_out) for on in (True, False))
    assert narrow.dtype == torch.float32
    assert 0 < abs(narrow - wide) < 2**-6 * wide
    found = by_library(net.float(), data, hft.Unroll(), narrow=True)()
    assert all(x.dtype == torch.float32 and x.isfinite().all() for x in found.values())


def test_parts():
    names = ["embed.weight", "layers.0.into.bias", "layers.1.norm.weight", "head.bias"]
    assert [part_of(name) for name in names] == tiny(False)[0].parts() == ["embed", "layers.0", "layers.1", "head"]


def test_batches_come_again():
    data, again = (drawn(WORDS, 40, size=8, length=26) for _ in range(2))
    assert len(data.batches) == 40
    assert data.batches[16] is data.batches[0]
    assert data.examples == 128
    assert torch.equal(torch.cat([batch.ids for batch in data.batches[:16]]), torch.arange(128))
    assert all(torch.equal(x, y) for x, y in zip(again.batches[3], data.batches[3], strict=True))


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


def test_tables_of_the_page_are_those_of_the_file():
    runs = json.loads((ROOT / "benchmarks/results/large_cpu.json").read_text())["steps"]
    page = (ROOT / "docs/performance.md").read_text()
    assert len(runs) >= 2
    for record in runs.values():
        assert table(record) in page
        for name, row in record["contenders"].items():
            if "difference" in row and not CONTENDERS[name].narrow:
                assert row["difference"] < 1e-3
