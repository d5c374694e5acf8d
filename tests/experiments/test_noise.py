"""The noise study: what is learned from and what is not, each loss against one by hand, and what is chosen."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.common.draws import generator
from experiments.common.examples import Examples
from experiments.common.tweets import Tweets
from experiments.meta.noise import data as data_module
from experiments.meta.noise.config import Config
from experiments.meta.noise.data import Data, Problem, flipped
from experiments.meta.noise.methods import METHODS, Batch, Seen, net_weights
from experiments.meta.noise.network import logits, network
from experiments.meta.noise.study import STUDY
from experiments.meta.noise.summary import summarise
from experiments.meta.noise.training import accuracy, batches, loss_of, train
from experiments.meta.noise.weights import BINS, auc, weights
from tests.experiments.running import ran, refused

TINY = ["--steps", "4", "--looks", "2", "--seeds", "0", "1", "--hidden", "8", "--datasets", "digits"]
TINY += ["--digits-lrs", "0.1", "--smoothing", "0.2", "--weight-lrs", "0.3", "--meta-lrs", "0.001"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def problem() -> Problem:
    g = torch.Generator().manual_seed(0)

    def examples(count: int) -> Examples:
        return Examples(torch.randn(count, 5, generator=g), torch.arange(count) % 3)

    noisy = examples(12)
    given = flipped(noisy.y, 3, 0.5, "uniform", g)
    return Problem(Examples(noisy.x, given), given == noisy.y, examples(6), examples(9), examples(9), 3)


@pytest.fixture
def config() -> Config:
    return Config(steps=4, looks=2, batch=6, clean_batch=3, hidden=4, noise=0.5, clean_share=0.25, ramp=0.5)


def test_as_many_labels_are_wrong_as_was_asked_for():
    labels = torch.arange(1000) % 10
    uniform = flipped(labels, 10, 0.4, "uniform", torch.Generator().manual_seed(0))
    pair = flipped(labels, 10, 0.4, "pair", torch.Generator().manual_seed(0))
    assert (uniform != labels).sum() == (pair != labels).sum() == 400
    assert ((uniform - labels) % 10).unique().tolist() == list(range(10))
    assert ((pair - labels) % 10).unique().tolist() == [0, 1]
    assert torch.equal(labels, torch.arange(1000) % 10)


def test_only_noisy_labels_are_wrong_and_no_example_is_in_two_sets():
    true = torch.arange(1797) % 10
    made = Data(Config(), Examples(torch.arange(1797)[:, None].float(), true), None)
    found = made.problem("digits", "uniform", 0)
    sets = {name: getattr(found, name) for name in ("noisy", "clean", "validation", "test")}
    places = {name: part.x[:, 0].long() for name, part in sets.items()}
    assert sorted(torch.cat(list(places.values())).tolist()) == list(range(1797))
    for name in ("clean", "validation", "test"):
        assert torch.equal(sets[name].y, true[places[name]])
    assert torch.equal(found.right, found.noisy.y == true[places["noisy"]])
    assert found.right.sum() == 600
    other = made.problem("digits", "uniform", 1)
    assert not torch.equal(other.noisy.x, found.noisy.x)


def test_words_are_those_of_the_tweets_that_are_learned_from(monkeypatch):
    seen = {}

    def bag_of_words(fitted_on, features, *others):
        seen["fitted"], seen["others"] = fitted_on, others
        return [torch.tensor([[float(text)] for text in texts]) for texts in (fitted_on, *others)]

    monkeypatch.setattr(data_module, "bag_of_words", bag_of_words)
    labels = torch.arange(7000) % 3
    made = Data(Config(), None, Tweets(tuple(map(str, range(7000))), labels, ("",) * 7000))
    found = made.problem("tweets", "pair", 0)
    assert [int(text) for text in seen["fitted"]] == torch.cat([found.noisy.x, found.clean.x])[:, 0].tolist()
    assert not set(seen["fitted"]) & {text for texts in seen["others"] for text in texts}
    for part in (found.clean, found.validation, found.test):
        assert torch.equal(part.y, part.x[:, 0].long() % 3)


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
    value, losses = seen_by("each", own)
    w = torch.sigmoid(torch.tensor([0.5, 0.3, 2.0, -1.0]))  # those at the places in the batch
    torch.testing.assert_close(value, (w * losses).sum() / w.sum())
    value, losses = seen_by("smoothing", number=0.3)
    p = torch.tensor([[0.0, 1.0], [2.0, 0.0], [0.0, 3.0], [1.0, 1.5]]).log_softmax(1)
    torch.testing.assert_close(value, (0.7 * losses - 0.3 * p.mean(1)).mean())


def test_the_weight_net_sees_losses_as_constants():
    net = network(1, 100, 1, generator("net"))
    losses = torch.tensor([0.1, 2.0], requires_grad=True)
    assert not net_weights(net, losses).requires_grad
    w = net_weights(net, losses)
    inside = (losses[:, None] @ net["below"] + net["below_bias"]).relu()
    by_hand = torch.sigmoid(inside @ net["above"] + net["above_bias"])[:, 0]
    torch.testing.assert_close(w, by_hand.detach())
    value, each = seen_by("net", net)
    w = net_weights(net, each)
    torch.testing.assert_close(value, (w * each).sum() / w.sum())


def test_batches(problem, config):
    data = batches(problem, METHODS["small"], config, 0)
    assert [int(batch.kept) for batch in data] == [6, 4, 3, 3]  # down to half of six in half of the steps: 6, 4.5, 3
    assert sorted(torch.cat([batch.noisy for batch in data[:2]]).tolist()) == list(range(12))
    assert all(len(batch.clean) == 3 for batch in data)
    right = torch.cat([batch.noisy for batch in batches(problem, METHODS["oracle"], config, 0)])
    assert problem.right[right].all()
    assert len(right.unique()) == problem.right.sum() == 6


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_examples_tells_nothing_of_their_labels(seed):
    made = Data(Config(), Examples(torch.arange(1797)[:, None].float(), torch.arange(1797) % 10), None)
    found = made.problem("digits", "uniform", seed)
    first = torch.cat([batch.noisy for batch in batches(found, METHODS["noisy"], Config(), seed)[:4]])
    assert len(first.unique()) == 400
    assert abs(int((~found.right[first]).sum()) - 160) < 40  # five standard deviations


@pytest.mark.parametrize("seed", range(6))
def test_the_weight_net_begins_near_equal_weights(seed):
    start = METHODS["net"].start
    assert start is not None
    w = net_weights(start(12, seed), torch.linspace(0, 2, 20))  # of ten classes, chance is 2.3
    assert w.max() / w.min() < 3


@pytest.mark.parametrize("name", ["noisy", "clean", "both"])
def test_plain_training_is_the_loop_by_hand(problem, config, name):
    found = train(problem, METHODS[name], config, 0.1, 0.0, 7)
    params = {key: p.requires_grad_() for key, p in network(5, 4, 3, generator("network", 7)).items()}
    by_hand = torch.optim.SGD(params.values(), lr=0.1, momentum=0.9)
    for batch in batches(problem, METHODS[name], config, 7):
        noisy, clean = problem.noisy.take(batch.noisy), problem.clean.take(batch.clean)
        on_noisy, on_clean = (F.cross_entropy(logits(params, part.x), part.y) for part in (noisy, clean))
        shares = {"noisy": (1, 0), "clean": (0, 1), "both": (0.75, 0.25)}[name]
        by_hand.zero_grad()
        (shares[0] * on_noisy + shares[1] * on_clean).backward()
        by_hand.step()
    for key, p in params.items():
        torch.testing.assert_close(found.params[key], p.detach())
    assert found.steps == [2, 4]
    assert found.test[-1] == accuracy(params, problem.test)
    assert found.validation[-1] == accuracy(params, problem.validation)


@pytest.mark.parametrize("name", ["each_outer", "each", "net_outer", "net"])
def test_weights_move_along_the_hypergradient_on_the_clean_set(problem, config, name):
    """One step by hand: autograd through a step of SGD, then Adam's first step."""
    method, once = METHODS[name], replace(config, steps=1, looks=1)
    assert method.start is not None
    found = train(problem, method, once, 0.1, 0.01, 7)
    own = method.start(12, 7)
    own = {"w": own} if isinstance(own, Tensor) else own
    leaves = {key: x.clone().requires_grad_() for key, x in own.items()}
    params = {key: p.requires_grad_() for key, p in network(5, 4, 3, generator("network", 7)).items()}
    (batch,) = batches(problem, method, once, 7)
    loss = loss_of(problem, method, once, 0.01)(params, batch, leaves.get("w", leaves))
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
def test_divergence_is_a_result(problem, config, name):
    found = train(problem, METHODS[name], config, 1e30, 0.001, 0)
    assert found.diverged
    assert len(found.steps) < 2


def test_how_right_and_wrong_labels_are_told_apart(problem, config):
    assert auc(torch.tensor([3.0, 1.0]), torch.tensor([2.0, 1.0])) == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    found = train(problem, METHODS["net"], config, 0.1, 0.001, 0)
    told = weights(problem, METHODS["net"], found, 0.5)
    assert told is not None
    losses = F.cross_entropy(logits(found.params, problem.noisy.x), problem.noisy.y, reduction="none")
    w = net_weights(found.own, losses)
    assert told["right"]["mean"] == pytest.approx(float(w[problem.right].mean() / w.mean()), abs=1e-4)
    pairs = [float(r > x) + float(r == x) / 2 for r in w[problem.right] for x in w[~problem.right]]
    assert told["auc"] == pytest.approx(sum(pairs) / 36, abs=1e-4)
    assert len(told["wrong"]["bins"]) == BINS
    assert sum(told["wrong"]["bins"]) == pytest.approx(1, abs=0.01)
    kept = weights(problem, METHODS["small"], found, 0.5)
    assert kept is not None
    assert kept["right"]["mean"] + kept["wrong"]["mean"] == pytest.approx(2)  # half are kept, so their weight is 2
    assert weights(problem, METHODS["both"], found, 0.5) is None


def trial(lr, validation, test, diverged=False):
    steps = [10 * (n + 1) for n in range(len(test))]
    return {
        "lr": lr, "number": None, "steps": steps, "validation": validation, "test": test, "seconds": 2 * lr,
        "diverged": diverged, "weights": None,
    }  # fmt: skip


def test_choices_are_made_on_validation_for_all_seeds_at_once():
    both = [
        [trial(1, [50, 60], [1, 2]), trial(2, [90, 10], [3, 4]), trial(3, [99], [5], diverged=True)],
        [trial(1, [60, 50], [6, 7]), trial(2, [80, 80], [8, 9]), trial(3, [], [], diverged=True)],
    ]
    noisy = [[trial(1, [1, 1], [0, 0])]] * 2
    config = {"datasets": ["digits"], "kinds": ["pair"], "methods": ["noisy", "both"], "seeds": [4, 5]}
    results = {
        f"digits-pair-{method}-seed{seed}": {"trials": trials}
        for method, own in (("both", both), ("noisy", noisy))
        for seed, trials in zip((4, 5), own, strict=True)
    }
    row = summarise({"config": config, "results": results})["digits-pair"]["both"]
    assert row["end"]["lr"] == 1  # 55 against 45, and 0 for what diverged
    assert row["end"]["tests"] == [2, 7]
    assert row["end"]["edge"]
    assert row["stopped"]["lr"] == 2  # 85 against 60 and 49.5
    assert row["stopped"]["tests"] == [3, 8]  # the first of equally good steps
    assert row["stopped"]["steps"] == [10, 10]
    assert not row["stopped"]["edge"]
    assert row["diverged"] == 2
    assert row["cost"] == pytest.approx(2)  # 4 s to 2 s
    assert row["stopped"]["minus_both"] == (0, 0)


def test_a_stopped_run_ends_as_an_undisturbed_one():
    assert ran(STUDY, *TINY, "--methods", "both", "small", "net", "oracle", "--out", "whole").status == 0
    again = ("--methods", "both", "small", "net", "oracle", "--out", "stopped")
    assert ran(STUDY, *TINY, *again, stop_before="digits-uniform-net-seed0").status == 130
    status, text, begun = ran(STUDY, *TINY, *again)
    assert status == 0
    assert begun[0] == "digits-uniform-net-seed0"
    assert "oracle" in text
    whole, stopped = (
        json.loads(Path(folder, "metrics.json").read_text())["results"] for folder in ("whole", "stopped")
    )
    for name, result in whole.items():
        for one, other in zip(result["trials"], stopped[name]["trials"], strict=True):
            assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_the_report_has_every_method_and_figure():
    assert ran(STUDY, *TINY, "--kinds", "uniform", "pair", "--seeds", "0", "--out", "out").status == 0
    report = Path("out/report.md").read_text()
    for name in Config().methods:
        assert f"| {METHODS[name].title} |" in report
        assert f"| digits, pair: {METHODS[name].title} |" in report  # what was chosen
    assert "digits, pair, stopped early" in report
    for figure in ("accuracy.png", "weights.png", "function.png"):
        assert f"({figure})" in report
        assert Path("out", figure).stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--batch", "1001"), "--batch 1001: digits have 1000 noisy examples"),
        (("--noise", "1"), "--noise 1: must be a number between 0 and 1"),
        (("--steps", "5"), "--steps 5: must be a multiple of --looks 2 times --inner-steps 1"),
        (("--digits-lrs", "0.1", "0"), "--digits-lrs 0.1 0.0: must be numbers above 0"),
        (("--smoothing", "1"), "--smoothing 1.0: must be numbers from 0 to below 1"),
        (("--methods", "both", "both"), "--methods both both: give at least one, and each once"),
        (("--datasets",), "--datasets : give at least one"),
        (("--batch", "0"), "--batch 0: must be an integer of at least 1"),
        (("--batch", "1", "--noise", "0.8"), "small-loss selection would keep none"),
        (("--momentum", "1"), "--momentum 1: must be"),
    ],
)
def test_what_cannot_run_is_refused(arguments, said, capsys):
    assert refused(STUDY, *TINY, *arguments)
    assert said in capsys.readouterr().err
