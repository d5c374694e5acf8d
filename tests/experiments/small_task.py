"""A task for the studies' machinery that trains in milliseconds: two clouds of points in two domains."""

import hashlib
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.common.method_study import MethodStudy
from experiments.common.options import AnchorOptions
from experiments.common.task import Network, Part, percent_right

SIZES = {"pretrain": 24, "finetune": 16, "train": 13, "validation": 3, "test": 40}


@dataclass(frozen=True)
class Config(AnchorOptions):
    linear_layers = True

    seeds: tuple[int, ...] = (0,)
    epochs: int = 2
    batch_size: int = 8
    anchor_epochs: int = 1


class Net(Network):
    """Two layers that rules by depth may go by, dropout, and a head."""

    head = "fc.*"
    layers = ("query", "body")

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.query, self.body, self.fc = nn.Linear(3, 16), nn.Linear(16, 16), nn.Linear(16, 2)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.fc(F.dropout(torch.tanh(self.body(torch.tanh(self.query(inputs)))), self.dropout, self.training))


@dataclass
class Points:
    """A `Task`. What happens to it is kept in `events`, what its tests see in `tested`; `given` are the next scores of
    validation."""

    metric = "accuracy"
    name = "points"
    by_class = False
    columns = {"id": ("near",), "ood": ("far",)}  # noqa: RUF012
    titles = {"id": "ID: near"}  # noqa: RUF012

    dropout: float = 0.1
    given: list[float] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    tested: list[dict[str, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.drawn: dict[str, set[int]] = {}
        drawn = torch.Generator().manual_seed(0)
        count = sum(SIZES.values())
        self.x = torch.randn(count, 3, generator=drawn)
        self.y = (self.x[:, 0] + 0.5 * torch.randn(count, generator=drawn) > 0).long()
        places = torch.arange(count).split([SIZES[name] for name in ("pretrain", "train", "validation", "test")] + [16])
        self.places = dict(zip(("pretrain", "train", "validation", "test"), places, strict=False))
        self.places["finetune"] = torch.cat([self.places["train"], self.places["validation"]])
        self.parts = {
            name: Part(len(places), partial(self._draw, places))
            for name, places in self.places.items()
            if name != "test"
        }

    def _draw(self, places: Tensor, chosen: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        own = places[chosen]
        if self.events:
            self.drawn.setdefault(self.events[-1], set()).update(own.tolist())
        return self.x[own] + 0.1 * torch.randn(len(own), 3, generator=generator), self.y[own]

    def on_step(self, name: str, step: int) -> None:
        """For the command: the order of trainings."""
        if not self.events or self.events[-1] != name:
            self.events.append(name)

    def fingerprint(self) -> str:
        return hashlib.sha256(self.x.numpy().tobytes()).hexdigest()[:8]

    pretrain_fingerprint = fingerprint

    def new_model(self) -> Net:
        torch.manual_seed(1)
        return Net(self.dropout)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets)

    def share_right(self, outputs: Tensor, targets: Tensor) -> float:
        return (outputs.argmax(dim=1) == targets).float().mean().item()

    def _score(self, model: nn.Module, places: Tensor, shift: float = 0.0) -> float:
        with torch.no_grad():
            return percent_right(model.eval()(self.x[places] + shift).argmax(1), self.y[places])

    def validate(self, model: nn.Module) -> float:
        self.events.append("validate")
        return self.given.pop(0) if self.given else self._score(model, self.places["validation"])

    def test(self, model: nn.Module) -> dict[str, float]:
        self.events.append("test")
        self.tested.append({name: value.clone() for name, value in model.state_dict().items()})
        return {name: self._score(model, self.places["test"], shift) for name, shift in (("near", 0.0), ("far", 0.5))}


STUDY = MethodStudy(
    make_task=lambda config, cache, progress: Points(),
    facts=lambda task: {"points": len(task.x)},
    heading="Points",
    setting=lambda content: "Points in two clouds.",
).study("points", "Fine-tune on points.", Config, fast=Config())
