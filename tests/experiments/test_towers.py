"""The study of towers: all trainings at once are those one by one, and what counts as good is counted right."""

import pytest
import torch

import hyperopt_ftp as hft
from experiments.common.examples import Examples
from experiments.tuning.towers.config import Config
from experiments.tuning.towers.study import STUDY
from experiments.tuning.towers.tasks import ALPHABET, CONTEXT, Task, codes, contexts, of_digits, of_tweets, one_hot
from experiments.tuning.towers.training import draw, first_hparams, tower, train, train_all
from tests.experiments.running import ran, results

TINY = ["--tasks", "digits", "--bases", "sgd", "--heights", "0", "1", "--seeds", "0", "1", "--steps", "4"]
TINY += ["--per-decade", "1", "--rounds", "1"]


def lines(count):
    """Points whose class is the sign of their first coordinate."""
    x = torch.randn(count, 3, generator=torch.Generator().manual_seed(count))
    return Examples(x, (x[:, 0] > 0).long())


@pytest.fixture
def task():
    parts = {"train": lines(60), "held_out": lines(30)}
    return Task("lines", "", lambda seed: parts, lambda x: x, inputs=3, hidden=4, classes=2)


@pytest.mark.parametrize(("base", "height", "way"), [("sgd", 0, "raw"), ("sgd", 2, "raw"), ("adam", 2, "log")])
def test_all_at_once_is_one_by_one(task, base, height, way):
    config = Config(seeds=(3, 4), per_decade=1, steps=12)
    together = train_all(task, base, height, way, config)
    for i, seed in enumerate(config.seeds):
        drawn = draw(task, seed, config.steps)
        for k, lr in list(enumerate(config.lrs))[3:6]:  # from a thousandth to a tenth
            alone = train(task, base, height, way, drawn, torch.tensor(lr, dtype=torch.float64))
            for name, value in alone._asdict().items():
                assert together[name][i][k] == pytest.approx(value.item(), rel=1e-4, abs=1e-6)
    ends = together["train"]
    assert ends[0] != pytest.approx(ends[1], rel=1e-3)
    assert [row[3] for row in ends] != pytest.approx([row[5] for row in ends], rel=1e-3)


def test_a_raw_tower_of_sgd_is_the_loop_of_the_paper():
    optimizer = tower("sgd", 2, "raw")
    x = 0.1
    hparams = first_hparams(optimizer.hparams, torch.tensor(x, dtype=torch.float64), "raw")
    w = torch.tensor([1.0, -2.0], dtype=torch.float64)
    curvature = torch.tensor([1.0, 0.5], dtype=torch.float64)
    run = hft.train(optimizer, lambda p, _: (curvature * p * p).sum() / 2, w, [None] * 6, hparams=hparams)

    lr, above, before, h_before = x, x, torch.zeros(2, dtype=torch.float64), 0.0
    for _ in range(6):
        g = curvature * w
        h = -float(g @ before)  # of the learning rate
        above -= x * -h_before * h  # that of the level above is that of its own step on the learning rate
        lr -= above * h
        w, before, h_before = w - lr * g, g, h
    torch.testing.assert_close(run.params, w, rtol=1e-12, atol=0)
    assert run.state.tuned["lr"].item() == pytest.approx(lr, rel=1e-12)
    assert run.state.by.tuned["lr"].item() == pytest.approx(above, rel=1e-12)
    assert lr > x
    assert above > x


def test_contexts_by_hand():
    found = contexts([codes("ab"), codes("~")])
    space = ALPHABET.index(" ")
    a, b, other = ALPHABET.index("a"), ALPHABET.index("b"), len(ALPHABET)
    assert found.y.tolist() == [a, b, other]
    assert found.x.tolist() == [[space] * CONTEXT, [space] * (CONTEXT - 1) + [a], [space] * CONTEXT]
    seen = one_hot(found.x)
    assert seen.shape == (3, CONTEXT * (other + 1))
    assert seen.sum(1).tolist() == [CONTEXT] * 3
    assert seen[1].view(CONTEXT, -1).argmax(1).tolist() == found.x[1].tolist()


def test_no_example_is_in_two_parts():
    parts = of_digits().parts(0)
    assert [len(part.y) for part in parts.values()] == [1200, 597]
    rows = [{tuple(row) for row in part.x.tolist()} for part in parts.values()]
    assert not rows[0] & rows[1]
    task = of_tweets()
    parts = task.parts(0)
    starts = [(part.x == 0).all(1).nonzero().flatten() for part in parts.values()]  # where a tweet begins
    texts = [
        {tuple(part.y[i:j].tolist()) for i, j in zip(first, [*first[1:], None], strict=True)}
        for part, first in zip(parts.values(), (start.tolist() for start in starts), strict=True)
    ]
    assert len(texts[0]) > 1900
    assert len(texts[0] & texts[1]) <= 2  # alike in this alphabet alone
    assert int(parts["train"].y.max()) < task.classes
    assert not torch.equal(task.parts(1)["held_out"].y[:50], parts["held_out"].y[:50])


def test_a_stopped_run_ends_as_an_undisturbed_one(tmp_path):
    def run(name, stop_before=None):
        return ran(STUDY, *TINY, "--out", str(tmp_path / name), stop_before=stop_before)

    assert run("stopped", stop_before="digits-sgd-raw-1").status == 130
    assert run("stopped").status == 0
    status, text, _ = run("whole")
    assert status == 0
    assert "digits, sgd" in text
    trained = results(tmp_path / "whole")
    assert len(trained) == 3  # alone, and a tower each way
    assert results(tmp_path / "stopped") == trained
    assert trained["digits-sgd-log-1"] != trained["digits-sgd-raw-1"] != trained["digits-sgd-0"]
    report = (tmp_path / "whole" / "report.md").read_text()
    assert "(training-loss.png)" in report
    assert (tmp_path / "whole/training-loss.png").exists()
    assert "| digits, sgd | log | 1 |" in report
