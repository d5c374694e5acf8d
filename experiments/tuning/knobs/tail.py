"""The trained end of the network as a pure function of its weights: batches, loss, scores, the anchor."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import hyperopt_ftp as hft
from experiments.common.frozen import BLOCKS, Features, Tail
from experiments.tuning.knobs.config import Config

Weights = dict[str, Tensor]


class Score(NamedTuple):
    """On some pictures."""

    accuracy: float  # %
    loss: float  # cross-entropy


class Trainee:
    """A batch is the numbers of its rows: features stay in one place."""

    def __init__(self, features: Features) -> None:
        self._x, self._y = features.x, features.labels
        self._tail = Tail(BLOCKS, len(features.classes))
        self.fresh: Weights = {name: p.detach().clone() for name, p in self._tail.named_parameters()}

    def loss(self, weights: Weights, rows: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(self._tail, weights, (self._x[rows],)), self._y[rows])

    @torch.no_grad()
    def score(self, weights: Weights, rows: Tensor) -> Score:
        outputs, truth = torch.func.functional_call(self._tail, weights, (self._x[rows],)), self._y[rows]
        right = (outputs.argmax(dim=1) == truth).float().mean().item()
        return Score(100 * right, F.cross_entropy(outputs, truth).item())

    @torch.no_grad()
    def trained(self, optimizer: hft.Optimizer, start: Weights, batches: list[Tensor]) -> Weights:
        return hft.train(optimizer, self.loss, start, batches).params

    def anchor(self, config: Config, pretrain: Tensor, seed: int) -> Weights:
        """Trained on all styles."""
        base = hft.adamw(lr=config.anchor_lr)
        optimizer = hft.scheduled(base, lr=hft.schedules.cosine(config.anchor_steps))
        return self.trained(optimizer, self.fresh, orders(pretrain, config.anchor_steps, config.batch_size, seed))


def orders(rows: Tensor, steps: int, size: int, seed: int) -> list[Tensor]:
    """Batches of whole passes, each in an order of its own; what is left of a pass is left out."""
    generator, batches = torch.Generator().manual_seed(seed), []
    size = min(size, len(rows))
    while len(batches) < steps:
        order = rows[torch.randperm(len(rows), generator=generator)]
        batches += [batch for batch in order.split(size) if len(batch) == size]
    return batches[:steps]
