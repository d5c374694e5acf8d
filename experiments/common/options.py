"""Everything that decides the result of a comparison of methods, in one place."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Literal

from experiments.common.errors import InputError
from experiments.common.methods import FOLLOWS, METHODS

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ANCHORS = ("styles", "imagenet")
GRADIENTS = ("paper", "exact")


@dataclass(frozen=True)
class Options:
    """What every task has. Two runs with equal options give equal numbers on one machine."""

    methods: tuple[str, ...] = ("adamw", "ftp", "linear")
    seeds: tuple[int, ...] = (0, 1, 2)  # of the fine-tuning: order of the examples, augmentation, dropout
    epochs: int = 8
    lr: float = 5e-4
    lrs: tuple[float, ...] = ()  # tried for each method on held-out ID examples; none: `lr` for all
    weight_decay: float = 0.01
    strong_decay: float = 0.1  # of adamw_decay
    batch_size: int = 32
    labels: float = 1.0  # share of the examples that is fine-tuned on
    validation: float = 0.2  # share of these held out: to choose a learning rate, and for the radii of tpgm
    anchor: str = "styles"
    anchor_epochs: int = 10
    anchor_lr: float = 5e-4
    anchor_head: float = 1.0  # the head is new: its learning rate is so many times anchor_lr
    anchor_weight_decay: float = 0.01
    anchor_batch_size: int = 32
    kappa: float = 1.0
    radius_lr: float = 1e-2
    gradient: Literal["paper", "exact"] = "paper"
    wise: float = 0.5  # share of the fine-tuned weights in WiSE-FT's mean
    device: str = "cpu"
    split_seed: int = 0

    def check(self) -> None:
        """Refuse what cannot run, before any work starts."""
        self.check_methods()
        for name, allowed in (("anchor", ANCHORS), ("gradient", GRADIENTS)):
            if getattr(self, name) not in allowed:
                raise InputError(f"{option(name)} {getattr(self, name)}: allowed are {', '.join(allowed)}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or not all(0 <= s < 2**63 for s in self.seeds):
            raise InputError(f"--seeds {' '.join(map(str, self.seeds))}: give different integers of at least 0")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and field.name not in ("split_seed", "shift") and value < 1:
                raise InputError(f"{option(field.name)} {value}: must be an integer of at least 1")
        for name in ("lr", "anchor_lr", "anchor_head"):
            if not (math.isfinite(value := getattr(self, name)) and value > 0):
                raise InputError(f"{option(name)} {value}: must be a number above 0")
        if not all(math.isfinite(lr) and lr > 0 for lr in self.lrs) or len(set(self.lrs)) < len(self.lrs):
            raise InputError(f"--lrs {' '.join(map(str, self.lrs))}: give different numbers above 0")
        for name in ("weight_decay", "strong_decay", "radius_lr"):
            if not (math.isfinite(value := getattr(self, name)) and value >= 0):
                raise InputError(f"{option(name)} {value}: must be a number of at least 0")
        for name in ("kappa", "wise"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise InputError(f"{option(name)} {value}: must lie between 0 and 1")
        if not 0 < self.labels <= 1:
            raise InputError(f"--labels {self.labels}: must be above 0 and at most 1")
        if not 0 < self.validation < 1:
            raise InputError(f"--validation {self.validation}: must lie between 0 and 1, both excluded")

    def check_methods(self) -> None:
        if not self.methods or len(set(self.methods)) < len(self.methods) or not set(self.methods) <= METHODS.keys():
            raise InputError(f"--method {' '.join(self.methods)}: give any of {', '.join(METHODS)}, each once")
        for name, other in FOLLOWS.items():
            if name in self.methods and other not in self.methods:
                raise InputError(f"--method {name} is made of the weights of {other}; give both")

    @property
    def holds_out(self) -> bool:
        """Whether anything is done on validation examples."""
        return bool(self.lrs) or any(METHODS[name].validates for name in self.methods)

    def as_dict(self) -> dict:
        return plain_values(self)

    def changed(self) -> dict:
        """What differs from the defaults."""
        default = type(self)()
        names = [field.name for field in fields(self) if getattr(self, field.name) != getattr(default, field.name)]
        return {name: self.as_dict()[name] for name in names}


def plain_values(config: "DataclassInstance") -> dict:
    """The fields as JSON gives them back (lists for tuples)."""
    return json.loads(json.dumps(asdict(config)))


def option(name: str) -> str:
    return "--" + name.replace("_", "-")


def digest(recipe: dict) -> str:
    """A short name for a recipe: equal recipes, equal names."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]
