"""The noise study: what is learned from and what is not, each loss against one by hand, and what is chosen."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.common.examples import Examples, flipped, generator
from experiments.meta.noise.config import BATCH, CLEAN_BATCH, CLEAN_SHARE, HIDDEN, Config
from experiments.meta.noise.data import Data, Problem
from experiments.meta.noise.methods import METHODS, Batch, Seen, logits, net_weights, network
from experiments.meta.noise.report import summarise
from experiments.meta.noise.study import STUDY
from experiments.meta.noise.training import auc, batches, loss_of, told_apart, train
from tests.experiments.running import ran, results

TINY = ["--steps", "4", "--looks", "2", "--seeds", "0", "--datasets", "digits"]
TINY += ["--digits-lrs", "0.1", "--smoothing", "0.2", "--weight-lrs", "0.3", "--meta-lrs", "0.001"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def problem() -> Problem:
    g = torch.Generator().manual_seed(0)

    def examples(count: int) -> Examples:
        return Examples(torch.randn(count, 5, generator=g), torch.arange(count) % 3)

    noisy = examples(200)
    given = flipped(noisy.y, 3, 0.5, g)
    return Problem(Examples(noisy.x, given), given == noisy.y, examples(6), examples(9), examples(9), 3)


def test_labels_of_the_noisy_part_alone_are_wrong_and_no_example_is_in_two_parts():
    true = torch.arange(1797) % 10
    made = Data({"digits": Examples(torch.arange(1797)[:, None].float(), true)})
    found = made.problem("digits", 0)
    sets = {name: getattr(found, name) for name in ("noisy", "clean", "validation", "test")}
    places = {name: part.x[:, 0].long() for name, part in sets.items()}
    assert sorted(torch.cat(list(places.values())).tolist()) == list(range(1797))
    for name in ("clean", "validation", "test"):
        assert torch.equal(sets[name].y, true[places[name]])
    assert torch.equal(found.right, found.noisy.y == true[places["noisy"]])
    assert found.right.sum() == 600
    assert ((found.noisy.y - true[places["noisy"]]) % 10).unique().tolist() == list(range(10))
    assert not torch.equal(made.problem("digits", 1).noisy.x, found.noisy.x)
    # The order in which examples are seen tells nothing of their labels.
    first = torch.cat([batch.noisy for batch in batches(found, METHODS["noisy"], 500, 0)[:4]])
    assert len(first.unique()) == 400
    assert abs(int((~found.right[first]).sum()) - 160) < 40  # five standard deviations


def seen_by(loss: str, own=None, number: float = 0.0) -> tuple[Tensor, Tensor]:
    """The loss of four examples of two classes, and their losses."""
    outputs = torch.tensor([[0.0, 1.0], [2.0, 0.0], [0.0, 3.0], [1.0, 1.5]])
    labels = torch.tensor([1, 1, 0, 0])
    batch = Batch(torch.tensor([3, 0, 4, 1]), torch.tensor([0]), torch.tensor(3))
    return METHODS[loss].loss(Seen(outputs, labels, batch, number, own)), F.cross_entropy(
        outputs, labels, reduction="none"
    )


def test_losses_by_hand():
    value, losses = seen_by("both")
    torch.testing.assert_close(value, losses.mean())
    value, losses = seen_by("small")
    torch.testing.assert_close(value, losses.sort().values[:3].mean())
    own = torch.tensor([0.3, -1.0, 9.0, 0.5, 2.0])
    w = torch.sigmoid(own[[3, 0, 4, 1]])
    value, losses = seen_by("each", own)
    torch.testing.assert_close(value, (w * losses).sum() / w.sum())
    value, losses = seen_by("smoothing", number=0.3)
    p = torch.tensor([[0.0, 1.0], [2.0, 0.0], [0.0, 3.0], [1.0, 1.5]]).log_softmax(1)
    torch.testing.assert_close(value, (0.7 * losses - 0.3 * p.mean(1)).mean())
    start = METHODS["net"].start
    assert start is not None
    net = start(0, 0)
    value, losses = seen_by("net", net)
    losses.requires_grad_()
    w = net_weights(net, losses)
    assert not w.requires_grad
    inside = (losses[:, None] @ net["below"] + net["below_bias"]).relu()
    torch.testing.assert_close(w, torch.sigmoid(inside @ net["above"] + net["above_bias"])[:, 0].detach())
    torch.testing.assert_close(value, (w * losses).sum() / w.sum())
    for seed in range(6):  # nearly equal weights at first; of ten classes, chance is 2.3
        w = net_weights(start(0, seed), torch.linspace(0, 2, 20))
        assert w.max() / w.min() < 3


def test_batches(problem):
    data = batches(problem, METHODS["small"], 10, 0)
    assert [int(batch.kept) for batch in data] == [100, 80, *[60] * 8]  # down by 40 % in a fifth of the steps
    assert sorted(torch.cat([batch.noisy for batch in data[:2]]).tolist()) == list(range(200))
    assert all((len(batch.noisy), len(batch.clean)) == (BATCH, CLEAN_BATCH) for batch in data)
    right = torch.cat([batch.noisy for batch in batches(problem, METHODS["oracle"], 4, 0)])
    assert problem.right[right].all()
    assert len(right.unique()) == problem.right.sum() == 100


@pytest.mark.parametrize("name", ["noisy", "clean", "both"])
def test_plain_training_is_the_loop_by_hand(problem, name):
    found = train(problem, METHODS[name], Config(steps=4, looks=2), 0.1, 0.0, 7)
    params = {key: p.requires_grad_() for key, p in network(5, HIDDEN, 3, generator("network", 7)).items()}
    by_hand = torch.optim.SGD(params.values(), lr=0.1, momentum=0.9)
    for batch in batches(problem, METHODS[name], 4, 7):
        noisy, clean = problem.noisy.take(batch.noisy), problem.clean.take(batch.clean)
        on_noisy, on_clean = (F.cross_entropy(logits(params, part.x), part.y) for part in (noisy, clean))
        shares = {"noisy": (1, 0), "clean": (0, 1), "both": (1 - CLEAN_SHARE, CLEAN_SHARE)}[name]
        by_hand.zero_grad()
        (shares[0] * on_noisy + shares[1] * on_clean).backward()
        by_hand.step()
    for key, p in params.items():
        torch.testing.assert_close(found.params[key], p.detach())
    assert found.steps == [2, 4]
    hits = logits(found.params, problem.test.x).argmax(1) == problem.test.y
    assert found.test[-1] == pytest.approx(100 * hits.double().mean().item())


@pytest.mark.parametrize("name", ["each_outer", "each", "net_outer", "net"])
def test_weights_move_along_the_hypergradient_on_the_clean_set(problem, name):
    """One step by hand: autograd through a step of SGD, then Adam's first step."""
    method = METHODS[name]
    assert method.start is not None
    found = train(problem, method, Config(steps=1, looks=1), 0.1, 0.01, 7)
    own = method.start(200, 7)
    own = {"w": own} if isinstance(own, Tensor) else own
    leaves = {key: x.clone().requires_grad_() for key, x in own.items()}
    params = {key: p.requires_grad_() for key, p in network(5, HIDDEN, 3, generator("network", 7)).items()}
    (batch,) = batches(problem, method, 1, 7)
    loss = loss_of(problem, method, 0.01)(params, batch, leaves.get("w", leaves))
    grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
    ahead = {key: p - 0.1 * g for (key, p), g in zip(params.items(), grads, strict=True)}
    F.cross_entropy(logits(ahead, problem.clean.x), problem.clean.y).backward()
    moved = found.own if isinstance(found.own, dict) else {"w": found.own}
    for key, leaf in leaves.items():
        assert leaf.grad is not None
        assert leaf.grad.any()
        expected = leaf - 0.01 * leaf.grad / (leaf.grad.abs() + 1e-8)
        torch.testing.assert_close(moved[key], expected.detach(), atol=1e-4, rtol=1e-4)
    for key, p in ahead.items():
        torch.testing.assert_close(found.params[key], p.detach())


@pytest.mark.filterwarnings("ignore:the training loss of step")
@pytest.mark.parametrize("name", ["both", "net"])
def test_divergence_is_a_result(problem, name):
    found = train(problem, METHODS[name], Config(steps=4, looks=2), 1e30, 0.001, 0)
    assert found.diverged
    assert len(found.steps) < 2


def test_how_right_and_wrong_labels_are_told_apart(problem):
    assert auc(torch.tensor([3.0, 1.0]), torch.tensor([2.0, 1.0])) == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    found = train(problem, METHODS["net"], Config(steps=4, looks=2), 0.1, 0.001, 0)
    told = told_apart(problem, METHODS["net"], found)
    assert told is not None
    losses = F.cross_entropy(logits(found.params, problem.noisy.x), problem.noisy.y, reduction="none")
    w = net_weights(found.own, losses)
    assert told["right"]["mean"] == pytest.approx(float(w[problem.right].mean() / w.mean()), abs=1e-4)
    kept = told_apart(problem, METHODS["small"], found)
    assert kept is not None
    assert kept["right"]["mean"] + kept["wrong"]["mean"] == pytest.approx(2, abs=1e-3)  # half of them are right
    assert told_apart(problem, METHODS["both"], found) is None


def trial(lr, validation, test, diverged=False):
    steps = [10 * (n + 1) for n in range(len(test))]
    return {
        "lr": lr, "number": None, "steps": steps, "validation": validation, "test": test, "seconds": 2 * lr,
        "diverged": diverged, "weights": None,
    }  # fmt: skip


def test_choices_are_made_on_validation_for_all_seeds_at_once():
    both = [
        [trial(1, [50, 60], [1, 2]), trial(2, [90, 10], [3, 4]), trial(3, [99], [5], diverged=True)],
        [trial(1, [60, 50], [6, 7]), trial(2, [80, 80], [8, 9]), trial(3, [98], [5], diverged=True)],
    ]
    noisy = [[trial(1, [1, 1], [0, 0])]] * 2
    config = {"datasets": ["digits"], "seeds": [4, 5]}
    found = {
        f"digits-uniform-{method}-seed{seed}": {"trials": trials}
        for method, own in {**dict.fromkeys(METHODS, noisy), "both": both}.items()
        for seed, trials in zip((4, 5), own, strict=True)
    }
    row = summarise({"config": config, "results": found})["digits"]["both"]
    assert (row["lr"], row["tests"], row["edge"]) == (1, [2, 7], True)  # 55 against 45, and 0 for what diverged
    assert row["diverged"] == 2
    assert row["cost"] == pytest.approx(2)  # 4 s to 2 s
    assert summarise({"config": config, "results": found})["digits"]["noisy"]["minus_both"] == (-4.5, 2.5)


def test_a_stopped_run_ends_as_an_undisturbed_one_with_every_method_and_figure():
    assert ran(STUDY, *TINY, "--out", "whole").status == 0
    assert ran(STUDY, *TINY, "--out", "stopped", stop_before="digits-uniform-net-seed0").status == 130
    status, text, begun = ran(STUDY, *TINY, "--out", "stopped")
    assert status == 0
    assert begun[0] == "digits-uniform-net-seed0"
    assert "oracle" in text
    assert results(Path("whole")) == results(Path("stopped"))
    report = Path("whole/report.md").read_text()
    for method in METHODS.values():
        assert f"| {method.title} |" in report
        assert f"| digits: {method.title} |" in report  # what was chosen
    assert "(accuracy.png)" in report
    assert Path("whole/accuracy.png").exists()
