"""Episodes: five classes, a few emoji of each in one style to learn from, others in another style to predict."""

import random
from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from experiments.meta.few_shot.config import WAYS

Classes = Mapping[str, Sequence[int]]  # by subgroup: which emoji, counted within one style
Batch = tuple[Tensor, Tensor]  # inputs and labels
Both = tuple[Batch, Batch]  # support and query of many episodes


class Episodes(NamedTuple):
    """Which pictures; a picture is style * emoji + number of the emoji."""

    support: Tensor  # [E, ways, shots]
    query: Tensor  # [E, ways, queries]

    def batches(self, inputs: Tensor) -> Both:
        """What is learned from and what is predicted, [E, pictures, ...] each; `inputs` is [picture, ...]."""
        return _labelled(inputs, self.support), _labelled(inputs, self.query)


def _labelled(inputs: Tensor, chosen: Tensor) -> Batch:
    count, ways, each = chosen.shape
    labels = torch.arange(ways).repeat_interleave(each).expand(count, -1)
    return inputs[rearrange(chosen, "episode way each -> episode (way each)")], labels


def draw(
    classes: Classes, emoji: int, styles: int, count: int, shots: int, queries: int, generator: random.Random
) -> Episodes:
    """Every pair of styles comes equally often; no emoji is in both support and query."""
    support, query = [], []
    among = list(permutations(range(styles), 2))  # style of the support, style of the query
    names = sorted(classes)
    for number in range(count):
        seen, asked = among[number % len(among)]
        rows = [generator.sample(classes[name], shots + queries) for name in generator.sample(names, WAYS)]
        support.append([[seen * emoji + i for i in row[:shots]] for row in rows])
        query.append([[asked * emoji + i for i in row[shots:]] for row in rows])
    return Episodes(torch.tensor(support), torch.tensor(query))
