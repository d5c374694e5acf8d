"""Everything that decides the result of one run, in one place."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields

from experiments.common.errors import InputError

METHODS = ("adamw", "ftp", "linear")
ANCHORS = ("styles", "imagenet")
GRADIENTS = ("paper", "exact")


@dataclass(frozen=True)
class Config:
    """The defaults are the demo. Two runs with equal configs give equal numbers on one machine."""

    methods: tuple[str, ...] = METHODS
    seeds: tuple[int, ...] = (0, 1, 2)  # of the fine-tuning: order of the pictures, augmentation, dropout
    epochs: int = 8
    lr: float = 5e-4
    weight_decay: float = 0.01
    batch_size: int = 32
    anchor: str = "styles"
    anchor_epochs: int = 10
    anchor_lr: float = 5e-4
    anchor_weight_decay: float = 0.01
    anchor_batch_size: int = 32
    kappa: float = 1.0
    radius_lr: float = 1e-2
    gradient: str = "paper"
    device: str = "cpu"
    data_root: str | None = None
    id_domain: str | None = None  # None: the first domain
    limit: int | None = None
    split_seed: int = 0
    dropout: float = 0.2
    shift: int = 6  # pixels, augmentation

    def check(self) -> None:
        """Refuse what cannot run, before any work starts."""
        if not self.methods or len(set(self.methods)) < len(self.methods) or not set(self.methods) <= set(METHODS):
            raise InputError(f"--method {' '.join(self.methods)}: give any of {', '.join(METHODS)}, each once")
        for name, allowed in (("anchor", ANCHORS), ("gradient", GRADIENTS)):
            if getattr(self, name) not in allowed:
                raise InputError(f"{option(name)} {getattr(self, name)}: allowed are {', '.join(allowed)}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or not all(0 <= s < 2**63 for s in self.seeds):
            raise InputError(f"--seeds {' '.join(map(str, self.seeds))}: give different integers of at least 0")
        for name in ("epochs", "batch_size", "anchor_epochs", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{option(name)} {value}: must be an integer of at least 1")
        for name in ("lr", "anchor_lr"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{option(name)} {value}: must be a number above 0")
        for name in ("weight_decay", "radius_lr"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"{option(name)} {value}: must be a number of at least 0")
        if not 0 <= self.kappa <= 1:
            raise InputError(f"--kappa {self.kappa}: must lie between 0 and 1")
        if self.id_domain is not None and self.data_root is None:
            raise InputError("--id-domain goes with --data-root; the emoji are always fine-tuned on Twemoji")

    def as_dict(self) -> dict:
        """Plain values as JSON gives them back (lists for tuples)."""
        return json.loads(json.dumps(asdict(self)))

    def changed(self) -> dict:
        """What differs from the demo."""
        default = Config()
        names = [field.name for field in fields(self) if getattr(self, field.name) != getattr(default, field.name)]
        return {name: self.as_dict()[name] for name in names}


def option(name: str) -> str:
    return "--" + name.replace("_", "-")


def digest(recipe: dict) -> str:
    """A short name for a recipe: equal recipes, equal names."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]
