"""Tweets about one topic, tested on others: the tasks and the command."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from experiments.common.progress import Progress
from experiments.hypergradients.comparing import Tasks, gradient_study
from experiments.hypergradients.config import Plan
from experiments.hypergradients.report import Subject
from experiments.language.config import Config as Language
from experiments.language.data import ID_TOPIC, load
from experiments.language.loop import fit
from experiments.language.model import minilm, tokenizer
from experiments.language.study import COMPARISON, facts
from experiments.language.task import LanguageTask


@dataclass(frozen=True)
class Config(Plan, Language):
    """Tweets, as in the study of language. The loops are those of all other studies."""

    lr: float = 3e-4  # first learning rate; it falls to 0 as a cosine

    def check(self) -> None:
        super().check()
        self.check_plan()


def make_tasks(config: Config, cache: Path, progress: Progress) -> Tasks:
    texts, device = load(config, tokenizer()), torch.device(config.device)
    encoders = (minilm, partial(minilm, dropout=0.0))
    return Tasks(*(LanguageTask(texts, encoder, device, config.bf16) for encoder in encoders))


SUBJECT = Subject(
    network="MiniLM-L6",
    examples=lambda data: (
        f"{data['tweets']['train']} tweets about {ID_TOPIC}",
        f"{data['tweets']['validation']} tweets",
    ),
    anchors={"topics": "an anchor trained on all topics", "minilm": "MiniLM as it comes, with a new head"},
)

STUDY = gradient_study(
    "hypergradients-language",
    "experiments.hypergradients.language",
    "a fine-tuning of MiniLM",
    Config,
    make_tasks,
    facts,
    COMPARISON.packages,
    SUBJECT,
    fit,
)
main = STUDY.main
