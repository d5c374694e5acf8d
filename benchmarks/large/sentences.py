"""Reviews made of templates: two classes, and labels of which some are wrong."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

THINGS = ["film", "book", "meal", "hotel", "phone", "song", "lecture", "garden", "museum", "play", "train", "camera"]
GOOD = ["wonderful", "charming", "excellent", "brilliant", "delightful", "superb", "lovely", "moving", "fresh"]
BAD = ["dreadful", "boring", "awful", "clumsy", "disappointing", "terrible", "ugly", "tedious", "stale"]
TEMPLATES = (
    "the {thing} was {word} and i would say so again",
    "what a {word} {thing} , my friends thought the same",
    "we expected nothing of the {thing} , but it turned out {word}",
    "after an hour with this {thing} i can only call it {word}",
    "some call the {thing} {other} , to me it was {word} from the start",
)
#: Share of the training labels that are wrong: the weights of examples have something to learn.
WRONG = 0.25


class Batch(NamedTuple):
    """Some examples, each of ``length`` tokens."""

    tokens: Tensor
    mask: Tensor  # which of them are no padding
    labels: Tensor
    ids: Tensor  # of the examples: where their weights are


class Data(NamedTuple):
    """A batch for each step, one that is held out, and of how many examples all are made."""

    batches: list[Batch]
    held_out: Batch
    examples: int


def reviews(tokenize: Callable[[list[str], int], tuple[Tensor, Tensor]], steps: int, size: int, length: int) -> Data:
    """``tokenize(texts, length)`` gives tokens and mask. Sixteen batches, over and over again where steps are more."""
    draw = random.Random(0)
    count = size * min(steps, 16)
    texts, labels = _drawn(draw, count)
    tokens, mask = tokenize(texts, length)
    seen = torch.tensor([1 - y if draw.random() < WRONG else y for y in labels])
    ids = torch.arange(count).split(size)
    batches = [Batch(tokens[i], mask[i], seen[i], i) for i in ids]
    texts, labels = _drawn(draw, size)
    held_out = Batch(*tokenize(texts, length), torch.tensor(labels), torch.arange(size))
    return Data([batches[k % len(batches)] for k in range(steps)], held_out, count)


def _drawn(draw: random.Random, count: int) -> tuple[list[str], list[int]]:
    labels = [draw.randrange(2) for _ in range(count)]
    return [" . ".join(_sentence(draw, y) for _ in range(3)) for y in labels], labels


def _sentence(draw: random.Random, label: int) -> str:
    words: dict[str, Any] = {"thing": draw.choice(THINGS), "word": draw.choice(GOOD if label else BAD)}
    return draw.choice(TEMPLATES).format(**words, other=draw.choice(BAD if label else GOOD))
