"""Everything that decides the result of a comparison of methods, in one place."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import tyro

from experiments.common.errors import InputError
from experiments.common.methods import FOLLOWS, METHODS

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

TRAINED_ANCHORS = ("styles", "topics")


@dataclass(frozen=True)
class Options:
    """What every comparison has. Two runs with equal options give equal numbers on one machine."""

    linear_layers: ClassVar[bool] = False  # whether the network is made of these

    methods: Annotated[
        tuple[str, ...],
        tyro.conf.arg(name="method", help="; ".join(f"{name}: {method.about}" for name, method in METHODS.items())),
    ] = ("adamw", "ftp", "linear")
    seeds: tuple[int, ...] = (0, 1, 2)  # of the fine-tuning: order of the examples, augmentation, dropout
    epochs: int = 8  # passes over the fine-tuning examples
    lr: float = 5e-4  # first learning rate; it falls to 0 as a cosine
    lrs: tuple[float, ...] = ()  # to choose from, for each method on held-out examples in distribution; none: lr
    wider: tuple[tuple[str, float], ...] = ()  # methods, each with one more rate: `--wider adamw 2e-5 ftp 1e-2`
    weight_decay: float = 0.01  # decoupled, as in AdamW
    strong_decay: float = 0.1  # weight decay of adamw_decay
    batch_size: int = 32  # examples in one step
    validation: float = 0.2  # share of the fine-tuning examples held out, for learning rates and the radii of tpgm
    kappa: float = 1.0  # factor, 0 to 1, on hypergradients that would shrink a radius
    radius_lr: float = 1e-2  # learning rate of the radii
    gradient: Literal["paper", "exact"] = "paper"  # hypergradient of the radii: over all rows, or the projected ones
    wise: float = 0.5  # share of the fine-tuned weights in WiSE-FT's means
    device: str = "cpu"  # cpu, cuda, mps, or auto, which is cuda where there is one
    split_seed: int = 0  # of the split into parts

    def check(self) -> None:
        """Refuse what cannot run, before any work starts."""
        self.check_methods()
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or not all(0 <= s < 2**63 for s in self.seeds):
            raise InputError(f"--seeds {' '.join(map(str, self.seeds))}: give different integers of at least 0")
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name == "shift" else 1
            counts = isinstance(value, int) and not isinstance(value, bool) and field.name != "split_seed"
            if counts and value < least:
                raise InputError(f"{option(field.name)} {value}: must be an integer of at least {least}")
        self._check_above_zero("lr")
        if wrong := sorted({method for method, _ in self.wider} - {*self.methods}):
            raise InputError(f"--wider {' '.join(wrong)}: the methods are {', '.join(self.methods)}")
        for lrs in map(self.rates_of, self.methods):
            if not all(math.isfinite(lr) and lr > 0 for lr in lrs) or len(set(lrs)) < len(lrs):
                raise InputError(f"--lrs {' '.join(map(str, lrs))}: give different numbers above 0")
        for name in ("weight_decay", "strong_decay", "radius_lr", "anchor_weight_decay"):
            if not (math.isfinite(value := getattr(self, name, 0.0)) and value >= 0):
                raise InputError(f"{option(name)} {value}: must be a number of at least 0")
        for name in ("kappa", "wise", "dropout"):
            if not 0 <= (value := getattr(self, name, 0.0)) <= 1:
                raise InputError(f"{option(name)} {value}: must lie between 0 and 1")
        if not 0 < self.validation < 1:
            raise InputError(f"--validation {self.validation}: must lie between 0 and 1, both excluded")

    def check_methods(self) -> None:
        if not self.methods or len(set(self.methods)) < len(self.methods) or not set(self.methods) <= METHODS.keys():
            raise InputError(f"--method {' '.join(self.methods)}: give any of {', '.join(METHODS)}, each once")
        if not self.linear_layers and (wrong := [name for name in self.methods if METHODS[name].linear_layers]):
            raise InputError(
                f"--method {' '.join(wrong)}: is for networks of linear layers, as in experiments.language"
            )
        for name, other in FOLLOWS.items():
            if name in self.methods and other not in self.methods:
                raise InputError(f"--method {name} is made of the weights of {other}; give both")

    def rates_of(self, method: str) -> tuple[float, ...]:
        """The learning rates that a method chooses from."""
        return (*self.lrs, *(lr for name, lr in self.wider if name == method))

    @property
    def holds_out(self) -> bool:
        """Whether anything is done on validation examples."""
        return bool(self.lrs) or any(METHODS[name].validates for name in self.methods)

    def _check_above_zero(self, *names: str) -> None:
        for name in names:
            if not (math.isfinite(value := getattr(self, name)) and value > 0):
                raise InputError(f"{option(name)} {value}: must be a number above 0")

    @property
    def head_is_new(self) -> bool:
        """Without an anchor there is no other."""
        return True

    def as_dict(self) -> dict:
        return plain_values(self)

    def changed(self) -> dict:
        """What differs from the defaults."""
        default = type(self)()
        names = [field.name for field in fields(self) if getattr(self, field.name) != getattr(default, field.name)]
        return {name: self.as_dict()[name] for name in names}


@dataclass(frozen=True)
class AnchorOptions(Options):
    """Of a fine-tuning from an anchor, which is trained beforehand, once, and kept in runs/cache."""

    labels: float = 1.0  # share of the fine-tuning examples that is used
    anchor: str = "styles"  # where fine-tuning starts; each study says which there are
    anchor_epochs: int = 10  # passes over the pre-training examples
    anchor_lr: float = 5e-4  # first learning rate of the anchor
    anchor_head: float = 1.0  # the head is new: its learning rate is so many times anchor_lr
    anchor_weight_decay: float = 0.01  # of the anchor's training
    anchor_batch_size: int = 32  # the same

    @property
    def head_is_new(self) -> bool:
        """The anchor knows nothing of the task, so its head is left free; else it was trained, its head included."""
        return self.anchor not in TRAINED_ANCHORS

    def check(self) -> None:
        super().check()
        self._check_above_zero("anchor_lr", "anchor_head")
        if not 0 < self.labels <= 1:
            raise InputError(f"--labels {self.labels}: must be above 0 and at most 1")


def plain_values(config: "DataclassInstance") -> dict:
    """The fields as JSON gives them back (lists for tuples)."""
    return json.loads(json.dumps(asdict(config)))


def option(name: str) -> str:
    return "--" + name.replace("_", "-")


def digest(recipe: dict) -> str:
    """A short name for a recipe: equal recipes, equal names."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]
