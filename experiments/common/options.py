"""The options of a comparison of methods, and the checks that options of many studies share."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro

from experiments.common.errors import InputError
from experiments.common.methods import FOLLOWS, METHODS

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

TRAINED_ANCHORS = ("styles", "topics")
VALIDATION = 0.2  # share of the fine-tuning examples held out, for learning rates and the radii of tpgm


@dataclass(frozen=True)
class AnchorOptions:
    """What every comparison has; the anchor is trained beforehand, once, and kept in runs/cache. Two runs with equal
    options give equal numbers on one machine."""

    linear_layers: ClassVar[bool] = False  # whether the network is made of these
    anchor_head: ClassVar[float] = 1.0  # the head is new: its learning rate is so many times anchor_lr
    anchor_batch_size: ClassVar[int] = 32

    methods: Annotated[
        tuple[str, ...],
        tyro.conf.arg(name="method", help="; ".join(f"{name}: {method.about}" for name, method in METHODS.items())),
    ] = ("adamw", "ftp", "linear")
    seeds: tuple[int, ...] = (0, 1, 2)  # of the fine-tuning: order of the examples, augmentation, dropout
    epochs: int = 8  # passes over the fine-tuning examples
    lr: float = 5e-4  # first learning rate; it falls to 0 as a cosine
    lrs: tuple[float, ...] = ()  # to choose from, for each method on held-out examples in distribution; none: lr
    # Methods, each with one more rate: `--wider adamw 2e-5 ftp 1e-2`; without --lrs, its rate.
    wider: tuple[tuple[str, float], ...] = ()
    batch_size: int = 32  # examples in one step
    weight_decay: float = 0.01  # decoupled, as in AdamW
    warm_up: float | None = None  # share of the steps in which the learning rate rises from 0; none: each method's
    clip: float | None = None  # largest norm of all gradients together
    device: str = "cpu"  # cpu, cuda, mps, or auto, which is cuda where there is one
    split_seed: int = 0  # of the split into parts
    anchor: str = "styles"  # where fine-tuning starts; each study says which there are
    anchor_epochs: int = 10  # passes over the pre-training examples
    anchor_lr: float = 5e-4  # first learning rate of the anchor

    def check(self) -> None:
        """Refuse what cannot run, before any work starts."""
        self._check_methods()
        for field in fields(self):
            value = getattr(self, field.name)
            counts = isinstance(value, int) and not isinstance(value, bool) and field.name != "split_seed"
            if counts and value < 1:
                raise InputError(f"{option(field.name)} {value}: must be an integer of at least 1")
        for lrs in map(self.rates_of, self.methods):
            if not all(math.isfinite(lr) and lr > 0 for lr in lrs) or len(set(lrs)) < len(lrs):
                raise InputError(f"--lrs {' '.join(map(str, lrs))}: give different numbers above 0")
        for name in ("lr", "anchor_lr"):
            if not 0 < (value := getattr(self, name)) < math.inf:
                raise InputError(f"{option(name)} {value}: must be a number above 0")
        if not 0 <= (self.warm_up or 0.0) < 1 or (self.clip is not None and not 0 < self.clip < math.inf):
            raise InputError(f"--warm-up {self.warm_up}, --clip {self.clip}: give a share below 1, a norm above 0")
        if not 0 <= self.weight_decay < math.inf:
            raise InputError(f"--weight-decay {self.weight_decay}: must be a number of at least 0")

    def _check_methods(self) -> None:
        if not self.methods or len(set(self.methods)) < len(self.methods) or not set(self.methods) <= METHODS.keys():
            raise InputError(f"--method {' '.join(self.methods)}: give any of {', '.join(METHODS)}, each once")
        if not self.linear_layers and (wrong := [name for name in self.methods if METHODS[name].linear_layers]):
            raise InputError(
                f"--method {' '.join(wrong)}: is for networks of linear layers, as in experiments.language"
            )
        for name, other in FOLLOWS.items():
            if name in self.methods and other not in self.methods:
                raise InputError(f"--method {name} is made of the weights of {other}; give both")
        if wrong := sorted({method for method, _ in self.wider} - {*self.methods}):
            raise InputError(f"--wider {' '.join(wrong)}: the methods are {', '.join(self.methods)}")
        if not self.lrs and len({method for method, _ in self.wider}) < len(self.wider):
            raise InputError("--wider: without --lrs there is nothing to choose from; give each method one rate")

    def rates_of(self, method: str) -> tuple[float, ...]:
        """The learning rates that a method chooses from."""
        return (*self.lrs, *(lr for name, lr in self.wider if name == method))

    @property
    def holds_out(self) -> bool:
        """Whether anything is done on validation examples."""
        return bool(self.lrs) or any(METHODS[name].validates for name in self.methods)

    @property
    def head_is_new(self) -> bool:
        """The anchor knows nothing of the task, so its head is left free; else it was trained, its head included."""
        return self.anchor not in TRAINED_ANCHORS

    def as_dict(self) -> dict:
        return plain_values(self)


def plain_values(config: "DataclassInstance") -> dict:
    """The fields as JSON gives them back: lists for tuples."""
    return json.loads(json.dumps(asdict(config)))


def option(name: str) -> str:
    return "--" + name.replace("_", "-")


def digest(recipe: dict) -> str:
    """A short name for a recipe: equal recipes, equal names."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]


def check_fields(config: Any, **least: int) -> None:
    """Refuse numbers that cannot be sizes or rates, in any field of a config but its seeds, which `Study` checks.

    Whole numbers are at least 1, others above 0, or what `least` says; all are finite. Of several values there is at
    least one, but where none is the default, and each once.
    """
    for name, default in ((field.name, field.default) for field in fields(config) if field.name != "seeds"):
        value = getattr(config, name)
        values = value if isinstance(value, tuple) else (value,)
        given = f"{option(name)} {' '.join(map(str, values))}"
        if (not values and default != ()) or len(set(values)) < len(values):
            raise InputError(f"{given}: give at least one, each once")
        for number in values:
            if isinstance(number, int) or name in least:
                if not least.get(name, 1) <= number < math.inf:
                    raise InputError(f"{given}: must be at least {least.get(name, 1)}")
            elif isinstance(number, float) and not 0 < number < math.inf:
                raise InputError(f"{given}: must be a finite number above 0")


def check_share(labels: float, examples: int, classes: int) -> int:
    """How many examples a share of them is; fewer than classes are refused."""
    if not 0 < labels <= 1 or (kept := round(labels * examples)) < classes:
        least = f"{classes / examples:.2g}, where {examples} examples are of {classes} classes,"
        raise InputError(f"--labels {labels:g}: must be at least {least} and at most 1")
    return kept


def check_names(name: str, given: tuple[str, ...], known: Any) -> None:
    """Refuse names that there are not."""
    if unknown := [x for x in given if x not in known]:
        raise InputError(f"{option(name)} {' '.join(unknown)}: there are {', '.join(known)}")
