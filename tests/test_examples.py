"""The examples run, and the towers do what their text says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import hyperopt_ftp as hft
from examples import custom_strategy, estimate_7b, towers, tpgm, watching


@pytest.mark.parametrize("example", [towers, tpgm, custom_strategy], ids=lambda m: m.__name__)
def test_an_example_prints_its_table(example, capsys):
    example.main()
    assert len(capsys.readouterr().out.splitlines()) >= 3


def test_seven_billion_weights_on_paper(capsys, monkeypatch):
    """Two of its rows: what is held is the largest part, and all of it grows with each layer alike."""
    few = {name: estimate_7b.CASES[name] for name in ("Unroll, sqrt", "Unroll, offload")}
    monkeypatch.setattr(estimate_7b, "CASES", few)
    estimate_7b.main()
    first, _, *rows = capsys.readouterr().out.splitlines()
    assert first == "6.74 billion weights: 13 GB, and 54 GB of moments"
    page = (Path(__file__).parent.parent / "docs" / "concepts" / "cost.md").read_text().splitlines()
    assert len(rows) == 2
    assert set(rows) <= set(page)
    strategy, over = few["Unroll, sqrt"]
    two, three, four = (estimate_7b.estimate(n, strategy, over) for n in (2, 3, 4))
    assert four.memory - three.memory == three.memory - two.memory


def test_watching_leaves_its_figures(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["watching", str(tmp_path / "new")])
    watching.main()
    assert {file.name for file in (tmp_path / "new").iterdir()} == {"radii.png", "distance.png", "traces.png"}


@pytest.mark.parametrize(
    ("factor", "middle"), [(1 / 100, towers.FROM_BELOW), (10, towers.FROM_ABOVE)], ids=["from below", "from above"]
)
def test_a_tower_of_three_mends_a_learning_rate_that_plain_sgd_cannot_use(factor, middle):
    plain, _ = towers.train(hft.sgd(lr=towers.GOOD * factor), steps=120)
    tuned, lr = towers.train(towers.tower(towers.GOOD * factor, middle), steps=120)
    assert plain > 2.2  # chance is log 10 = 2.303
    assert tuned < 0.6
    assert abs(lr - towers.GOOD) < abs(towers.GOOD * factor - towers.GOOD)


def test_darts_approaches_the_exact_hypergradient():
    def weighted(params, batch, h):
        return custom_strategy.weighted(params, batch, h)

    (x, y), held_out = custom_strategy.digits()
    opt = hft.sgd(lr=0.3)
    h = opt.hparams | {"loss": {"weight": torch.zeros(10, dtype=torch.float64)}}
    exact, darts = (
        hft.hypergradient(
            opt, weighted, lambda p: custom_strategy.loss(p, held_out), custom_strategy.network(), [(x, y)], "loss", h,
            strategy=strategy,
        )[1]["loss"]["weight"]
        for strategy in (hft.Unroll(), custom_strategy.Darts())
    )  # fmt: skip
    torch.testing.assert_close(darts, exact, rtol=1e-3, atol=1e-6)


def test_darts_refuses_what_it_has_no_derivative_of():
    def weighted(params, batch, h):
        return h["weight"] * custom_strategy.loss(params, batch)

    data, _ = custom_strategy.digits()
    weight, lr = (torch.tensor(0.3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    opt, params = hft.sgd(), custom_strategy.network()
    for h, batches, text in (
        ({"lr": lr, "loss": {"weight": weight}}, [data], r"in hparams\['loss'\] only"),
        ({"loss": {"weight": weight}}, [data, data], "one step, got 2"),
    ):
        with pytest.raises(ValueError, match=text):
            hft.train(opt, weighted, params, batches, hparams=opt.hparams | h, strategy=custom_strategy.Darts())
