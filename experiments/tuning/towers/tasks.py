"""The tasks: digits, and the next character of tweets. Both are learned by one hidden layer of tanh units."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.common.examples import Examples, digits, split
from experiments.common.progress import Progress
from experiments.common.small_networks import Params, mlp, mlp_params
from experiments.common.tweets import tweets
from experiments.tuning.towers.config import Config, TaskName

ALPHABET = " abcdefghijklmnopqrstuvwxyz0@#.,!?'\"-:"  # the rest is one more character
CONTEXT = 8  # characters that the next one is predicted from
TEXTS = {"train": 2000, "held_out": 500}  # tweets


@dataclass(frozen=True)
class Task:
    """What is learned, and by how large a network."""

    title: str
    about: str
    parts: Callable[[int], Mapping[str, Examples]]  # by seed: disjoint train, held_out
    features: Callable[[Tensor], Tensor]  # what the network sees of inputs
    inputs: int
    hidden: int
    classes: int

    def network(self, seed: int) -> Params:
        return mlp_params((self.inputs, self.hidden, self.classes), torch.Generator().manual_seed(seed))

    def loss(self, params: Params, batch: Examples) -> Tensor:
        """Mean cross-entropy."""
        return F.cross_entropy(mlp(params, self.features(batch.x), torch.tanh), batch.y)


def of_digits() -> Task:
    examples = digits()
    sizes = {"train": 1200, "held_out": 597}
    about = "classes of 1,200 digits of 8 x 8 pixels (64-32-10 network; 597 held out)"
    return Task("digits", about, lambda seed: split(examples, sizes, seed), lambda x: x, 64, 32, 10)


def of_tweets() -> Task:
    texts = tweets().texts

    def parts(seed: int) -> Mapping[str, Examples]:
        order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
        chosen, first = {}, 0
        for name, size in TEXTS.items():  # whole tweets: no tweet is in both
            chosen[name] = contexts([codes(texts[i]) for i in order[first : first + size]])
            first += size
        return chosen

    classes = len(ALPHABET) + 1
    about = (
        f"the next of {classes} characters from the {CONTEXT} before it, in {TEXTS['train']:,} tweets "
        f"({CONTEXT * classes}-64-{classes} network; {TEXTS['held_out']} tweets held out)"
    )
    return Task("tweets", about, parts, one_hot, CONTEXT * classes, 64, classes)


def codes(text: str) -> Tensor:
    """Places in the alphabet; all that is not in it has the one after its end."""
    return torch.tensor([ALPHABET.index(c) if c in ALPHABET else len(ALPHABET) for c in text])


def contexts(texts: list[Tensor]) -> Examples:
    """Every character, after the ones before it in its text; before the text there are spaces."""
    padded = [F.pad(text, (CONTEXT, 0)) for text in texts]
    return Examples(torch.cat([text.unfold(0, CONTEXT, 1)[:-1] for text in padded]), torch.cat(texts))


def one_hot(x: Tensor) -> Tensor:
    """[..., CONTEXT] to [..., CONTEXT * characters]."""
    return (x.unsqueeze(-1) == torch.arange(len(ALPHABET) + 1)).float().flatten(-2)


KINDS: Mapping[TaskName, Callable[[], Task]] = {"digits": of_digits, "tweets": of_tweets}


@dataclass(frozen=True)
class Tasks:
    """Those of a run."""

    config: Config
    by_name: Mapping[TaskName, Task]

    def fingerprint(self) -> str:
        seeds = self.config.seeds
        parts = [part for task in self.by_name.values() for seed in seeds for part in task.parts(seed).values()]
        return hashlib.sha256(repr([part.fingerprint() for part in parts]).encode()).hexdigest()[:16]

    def about(self) -> dict:
        return {"tasks": {name: task.about for name, task in self.by_name.items()}, "lrs": self.config.lrs}


def load_tasks(config: Config, cache: Path, progress: Progress) -> Tasks:
    return Tasks(config, {name: KINDS[name]() for name in config.tasks})
