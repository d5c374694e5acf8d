"""The study of few labels: what is learned from and what is not, how batches are drawn, and a tiny run of it."""

import dataclasses

import pytest
import torch

from experiments.common.errors import InputError
from experiments.common.opinions import FILES
from experiments.common.tweets import SENTIMENTS, Tweets
from experiments.meta.few_labels import data, methods
from experiments.meta.few_labels.config import NOISE, Config
from experiments.meta.few_labels.data import Data, Problem
from experiments.meta.few_labels.methods import METHODS, Run, ends, rates_of
from experiments.meta.few_labels.report import piece
from experiments.meta.few_labels.study import STUDY
from experiments.meta.few_labels.weights import about
from hyperopt_ftp import FTPAdamW
from tests.experiments.running import ran, results

TINY = Config(tasks=("wrong emoji",), steps=20, limit=160, labels=16, counts=(17,))


@pytest.fixture
def problem(cache, quiet) -> Problem:
    return Data(TINY, cache, quiet).problem("wrong emoji", 0, 16)


def test_labels_are_right_the_source_is_not_and_no_group_is_in_two_parts(problem, cache, quiet):
    part, test = problem.task.pictures["train"], problem.task.pictures["test"]
    assert len(part.items) == problem.source + problem.labels
    assert problem.labels == 16
    other = Data(TINY, cache, quiet).problem("wrong emoji", 0, 16)
    assert other.task.fingerprint() == problem.task.fingerprint()
    assert int((~problem.right).sum()) == round(NOISE * problem.source)
    groups = [{*part.groups[: problem.source]}, {*part.groups[problem.source :]}, {*test.groups}]
    assert sum(map(len, groups)) == len(set.union(*groups))
    assert problem.groups.tolist() == part.labels[: problem.source].tolist()  # one domain
    assert problem.names[int(problem.groups[0])] == f"Twemoji: {part.classes[part.labels[0]]}"


def test_methods_differ_by_what_they_draw(problem):
    run, n = Run(problem, TINY, 0), problem.source
    alike = run.chances(run.labels)
    assert torch.allclose(alike, torch.full((n + 16,), 1 / (n + 16)))
    fifth = run.chances(torch.tensor([1, 3]), 0.2)
    assert fifth[n + torch.tensor([1, 3])].tolist() == pytest.approx([0.1, 0.1])
    assert fifth[:n].sum().item() == pytest.approx(0.8)
    assert fifth[n + torch.tensor([0, 2])].tolist() == [0, 0]
    odds = run.chances(run.labels, 0.5, torch.arange(float(n)))
    assert (odds[2] / odds[1]).item() == pytest.approx(2)
    seen, held_out = run.cut()
    assert sorted([*seen.tolist(), *held_out.tolist()]) == list(range(16))
    assert len(held_out) == 6
    batches = [targets for _, targets in run.drawn(run.chances(run.labels, 1.0), 3)]
    labels = problem.task.pictures["train"].labels[n:]
    assert {*torch.cat(batches).tolist()} <= {*labels.tolist()}


def test_labels_come_beside_the_source_and_then_alone(problem, monkeypatch):
    run, n, drawn, made = Run(problem, TINY, 0), problem.source, [], []

    def train(model, chances, share_of_steps=1.0, lr=None, make=None):
        drawn.append((round(chances[n:].sum().item(), 3), share_of_steps))
        made.append(make and type(make(list(torch.nn.Linear(1, 1).named_parameters()), 1e-4)))
        return model

    object.__setattr__(run, "train", train)
    monkeypatch.setattr(methods, "learn_weights", lambda *args, **options: ({}, {}))
    expected = {
        "source": [(0, 1)],
        "add": [(round(16 / (n + 16), 3), 1)],
        "add_tenth": [(0.1, 1)],
        "then_labels": [(0, 0.75), (1, 0.25)],
        "tenth_then": [(0.1, 0.75), (1, 0.25)],
        "then_ftp": [(0, 0.75), (1, 0.25)],
        "tenth_then_ftp": [(0.1, 0.75), (1, 0.25)],
        "learned_then": [(1, 0.25)],
        "learned_then_ftp": [(1, 0.25)],
    }
    for method, own in expected.items():
        METHODS[method].fit(run)
        assert drawn[-len(own) :] == own
        assert made[-len(own) :] == [None] * (len(own) - 1) + [FTPAdamW if method.endswith("ftp") else None]
    assert len(drawn) == sum(map(len, expected.values()))


class Told(torch.nn.Module):
    """Knows the given classes that `known` says, and takes the others for the next one."""

    def __init__(self, classes, known):
        super().__init__()
        self.classes, self.known, self.done = classes, known, 0

    def forward(self, images):
        rows = torch.arange(self.done, self.done + len(images))
        self.done += len(images)
        said = torch.where(self.known[rows], self.classes[rows], (self.classes[rows] + 1) % 8)
        return torch.nn.functional.one_hot(said, 8).float()


@pytest.mark.parametrize("method", ["agreement", "pruned", "told"])
def test_what_counts_of_labels_that_may_be_wrong(problem, monkeypatch, method):
    """Groups that labels alone agree with; examples of small losses; right labels."""
    run, n, drawn = Run(problem, TINY, 0), problem.source, []
    classes, groups = problem.task.pictures["train"].labels[:n], problem.groups
    known = {"agreement": groups < 3, "pruned": problem.right, "told": problem.right}[method]
    monkeypatch.setattr(methods, "labels", lambda run: Told(classes, known))
    monkeypatch.setattr(methods, "both", lambda run: Told(classes, known))
    object.__setattr__(run, "train", lambda model, chances: drawn.append(chances[:n]))
    METHODS[method].fit(run)
    assert drawn[0][known].min() > 50 * drawn[0][~known].max()


@pytest.mark.parametrize("method", ["importance", "then_learned_wise"])
def test_what_is_made_of_features_and_of_held_out_labels(method, problem):
    """Importance weights find the labels' domain where that is black; learned shares end between the two networks."""
    run = Run(problem, dataclasses.replace(TINY, steps=10), 0)
    if method == "importance":
        part = problem.task.pictures["train"]
        odd = torch.cat([torch.arange(problem.source) % 10 == 0, torch.ones(problem.labels, dtype=torch.bool)])
        part.images[odd] = 0
        drawn = []
        object.__setattr__(run, "train", lambda model, chances: drawn.append(chances))
        METHODS[method].fit(run)
        of_source = drawn[0][: problem.source]
        assert of_source[odd[: problem.source]].min() > of_source[~odd[: problem.source]].max()
        return
    weights = METHODS[method].fit(run).state_dict()
    anchor, tuned, _ = ends(run)
    assert all(any(not torch.equal(end[name], value) for name, value in weights.items()) for end in (anchor, tuned))
    for name, value in weights.items():
        low, high = torch.minimum(anchor[name], tuned[name]), torch.maximum(anchor[name], tuned[name])
        assert ((value >= low - 1e-5) & (value <= high + 1e-5)).all(), name


def test_rates_and_shares_are_those_of_the_best_trial_and_of_the_schedule(problem, monkeypatch):
    pytest.importorskip("optuna")
    run, seen, kept = Run(problem, TINY, 0), [], []

    def both(run, share, last, labels=None, lr=None):
        seen.append((share, last, lr, labels))
        return len(seen)

    monkeypatch.setattr(methods, "both", both)
    object.__setattr__(run, "score", lambda number, labels: -abs(number - 3))
    METHODS["optuna"].fit(run)
    assert len(seen) == TINY.trials + 1
    assert [one[:3] for one in seen[:2]] == [(0.1, 0.0, 2e-4), (0.0, 0.25, 2e-4)]
    assert seen[-1][:3] == pytest.approx(seen[2][:3])  # the third was the best
    assert torch.equal(seen[2][3], run.cut()[0])
    object.__setattr__(run, "new", lambda: None)
    object.__setattr__(run, "train", lambda model, chances, keep: kept.append(keep))
    METHODS["small_loss"].fit(run)
    wrong = (~problem.right).float().mean().item()
    assert [kept[0](done) for done in (0.0, 0.1, 0.2, 1.0)] == pytest.approx([1, 1 - wrong / 2, 1 - wrong, 1 - wrong])
    rates = rates_of(0.5, 20)
    assert rates[:3].tolist() == pytest.approx([0.25, 0.375, 0.5])
    assert rates[11].item() == pytest.approx(0.25)  # the middle of 18 steps
    assert rates[-1] < 0.01


def test_weights_are_told_by_kind_and_by_what_stands_out(problem):
    right = problem.right
    weights = torch.where(right, 2.0, 0.5) + torch.arange(len(right)) / 1e4
    told = about(problem, weights)
    assert told["pairs"] == 1
    assert told["quantiles"]["right label"][0] >= 2
    assert told["quantiles"]["wrong label"][-1] < 1
    lowest, highest = told["ends"]
    first = int((~right).nonzero()[0])
    assert (
        lowest[0] == f"{problem.shown[first]} {problem.names[problem.groups[first]].removeprefix('Twemoji: ')}, wrong"
    )
    assert all(not one.endswith("wrong") for one in highest)
    clean = about(dataclasses.replace(problem, right=None), weights)
    assert list(clean) == ["quantiles"]
    assert list(clean["quantiles"]) == ["Twemoji"]


def test_more_labels_than_there_are_are_refused(cache, quiet):
    with pytest.raises(InputError, match="100 labels: of the emoji only"):
        Data(TINY, cache, quiet).problem("wrong emoji", 0, 100)


def test_texts_of_other_domains_and_labels_of_the_target(monkeypatch, quiet, tmp_path):
    pytest.importorskip("transformers")
    kinds = [(topic, label, k) for topic in FILES for label in range(3) for k in range(10)]
    found = Tweets(
        tuple(f"{topic} {('bad', 'plain', 'good')[label]} {'abcdefghij'[k]}" for topic, label, k in kinds),
        torch.tensor([label for _, label, _ in kinds]),
        tuple(topic for topic, *_ in kinds),
    )
    monkeypatch.setattr(data, "opinions", lambda archive: found)
    monkeypatch.setattr(data, "TESTED", 2)
    few = dataclasses.replace(TINY, tasks=("newspapers", "wrong tweets"), labels=7, counts=(6,), per_class=4)
    made = Data(few, tmp_path, quiet)
    shift, wrong = (made.problem(name, 0, 7) for name in few.tasks)
    assert (shift.source, shift.labels, shift.right) == (3 * 3 * 4, 7, None)
    assert (wrong.source, wrong.labels) == (12, 7)
    shares = torch.tensor([float(name.removeprefix("annotator: ").partition(" ")[0]) for name in wrong.names])
    assert shares.tolist() == [7.0 * k for k in range(10)]
    for group, share in enumerate(shares / 100):  # the first annotator is never wrong
        own = wrong.right[wrong.groups == group]
        assert int((~own).sum()) == round(share.item() * len(own))
    assert shift.groups.bincount().tolist() == [4] * 9
    assert shift.names[4] == f"tweets: {SENTIMENTS[1]}"
    texts = shift.task.texts
    assert texts["train"].labels[shift.source :].bincount().tolist() == [3, 2, 2]
    assert texts["test newspapers"].labels.bincount().tolist() == [2, 2, 2]
    each = [{*texts[name].groups} for name in ("train", "test newspapers")]
    assert not each[0] & each[1]


def test_a_tiny_run_stops_goes_on_and_reports(tmp_path, cache):
    pytest.importorskip("optuna")
    out = tmp_path / "run"
    methods = ("add", "optuna", "then_wise", "pruned", "told", "learned", "learned_then")
    tiny = ["--tasks", "wrong emoji", "--methods", *methods, "--trials", "1", "--steps", "10", "--limit", "48"]
    tiny += ["--labels", "6", "--counts", "7", "--seeds", "0", "--out", str(out)]
    assert ran(STUDY, *tiny, stop_before=piece("wrong emoji", 0, 6, "pruned")).status == 130
    kept = results(out)
    assert len(kept) == 3
    done = ran(STUDY, *tiny)
    assert done.status == 0, done.text
    found = results(out)
    assert kept.items() <= found.items()
    assert all(0 <= result["score"] <= 100 for result in found.values())
    learned = found[piece("wrong emoji", 0, 6, "learned")]["learned"]
    assert [len(learned[name]) for name in ("group", "loss", "share")] == [8, 1, 1]
    assert learned["loss"] != [0.0]
    then = found[piece("wrong emoji", 0, 6, "learned_then")]["learned"]
    assert [then[name] for name in ("group", "loss", "share")] == [learned[name] for name in ("group", "loss", "share")]
    assert then["examples"] != learned["examples"]  # the labels alone have moved the network
    assert {count for name in found for count in (6, 7) if f"{count} labels" in name} == {6, 7}
    assert len(found) == 7 * 2
    report = (out / "report.md").read_text()
    assert METHODS["learned"].about in report
    assert "| wrong emoji | 6 | learned weights" in report
    assert "| wrong emoji | 7 | learned weights" in report
    assert all((out / f"{name}.png").exists() for name in ("gain", "weights", "counts"))
    assert ran(STUDY, "--methods", "learned").status == 2
    assert ran(STUDY, "--tasks").status == 2  # none
    assert ran(STUDY, "--labels", "5").status == 2
    assert ran(STUDY, "--labels", "25", "--counts", "25").status == 2
