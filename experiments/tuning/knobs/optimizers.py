"""What is fine-tuned with: AdamW, and FTP around it."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import hyperopt_ftp as hft
from experiments.tuning.knobs.config import Config
from experiments.tuning.knobs.tail import Weights

Make = Callable[[Config, float, Weights], hft.Optimizer]  # of a learning rate and the anchor


class Knobs(NamedTuple):
    """What is tuned of FTP around AdamW."""

    lr: float
    radius_lr: float
    kappa: float


def base(config: Config, lr: float) -> hft.Optimizer:
    """Without weight decay: nothing but FTP is to hold the weights."""
    return hft.scheduled(hft.adamw(lr=lr, weight_decay=0.0), lr=hft.schedules.cosine(config.steps))


def with_knobs(config: Config, anchor: Weights, knobs: Knobs) -> hft.Optimizer:
    return hft.ftp(base(config, knobs.lr), anchor, radius_lr=knobs.radius_lr, kappa=knobs.kappa)


#: Those whose only choice is the learning rate.
PLAIN: Mapping[str, Make] = {
    "adamw": lambda config, lr, anchor: base(config, lr),
    "ftp": lambda config, lr, anchor: hft.ftp(base(config, lr), anchor),
    "ftp_exact": lambda config, lr, anchor: hft.ftp(base(config, lr), anchor, gradient="exact"),
}
