"""The ways of fine-tuning that are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import hyperopt_ftp as hft
from experiments.common.network import Network

if TYPE_CHECKING:
    from experiments.common.options import Options


@dataclass(frozen=True)
class Method:
    """Either an optimizer over some of the model's parameters, or (`radii`) a bilevel training of the radii."""

    title: str
    about: str
    optimizer: Callable[[Network, Options, float], torch.optim.Optimizer] | None = None
    validates: bool = False  # trains on `train` and uses `validation`, instead of training on both


def adamw(model: Network, options: Options, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.named_parameters(), lr=lr, weight_decay=options.weight_decay)


def adamw_decay(model: Network, options: Options, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.named_parameters(), lr=lr, weight_decay=options.strong_decay)


def linear(model: Network, options: Options, lr: float) -> torch.optim.Optimizer:
    model.freeze_backbone()
    return torch.optim.AdamW(model.head_parameters(), lr=lr, weight_decay=options.weight_decay)


def free_parameters(model: Network, options: Options) -> tuple[str, ...]:
    """The head belongs to the all-style anchor and is constrained with the rest; on plain ImageNet weights it is new,
    knows nothing worth keeping, and is left free."""
    return (model.head,) if options.anchor == "imagenet" else ()


def _ftp(**fixed: float | str) -> Callable[[Network, Options, float], torch.optim.Optimizer]:
    def make(model: Network, options: Options, lr: float) -> torch.optim.Optimizer:
        return hft.FTPAdamW(
            model.named_parameters(),
            lr=lr,
            weight_decay=options.weight_decay,
            exclude=free_parameters(model, options),
            **{"radius_lr": options.radius_lr, "kappa": options.kappa, "gradient": options.gradient, **fixed},
        )

    return make


METHODS: Mapping[str, Method] = {
    "linear": Method("linear probe", "only the head moves", linear),
    "adamw": Method("AdamW", "every weight moves freely", adamw),
    "adamw_decay": Method("AdamW, weight decay", "AdamW with --strong-decay", adamw_decay),
    "ftp": Method("FTPAdamW", "every weight stays within a learned radius of the anchor", _ftp()),
    "ftp_exact": Method("FTPAdamW exact", "ftp with --gradient exact", _ftp(gradient="exact")),
    "ftp_kappa0": Method("FTPAdamW kappa 0", "ftp with --kappa 0", _ftp(kappa=0.0)),
    "ftp_exact_kappa0": Method("FTPAdamW exact, kappa 0", "ftp with both", _ftp(gradient="exact", kappa=0.0)),
    "tpgm": Method("TPGM", "AdamW projected, radii learned on validation examples at every step", validates=True),
    "wise": Method("WiSE-FT", "mean of the anchor and of AdamW's weights, made after training"),
}

#: Methods that need no training: they are made of the weights in which another one ends.
FOLLOWS = {"wise": "adamw"}


def title(name: str) -> str:
    return "anchor, not fine-tuned" if name == "anchor" else METHODS[name].title


def interpolated(anchor: Mapping[str, Tensor], tuned: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """WiSE-FT (arXiv 2109.01903): `(1 - share) anchor + share tuned`, over the whole state_dict; counters stay."""
    return {
        name: torch.lerp(value, tuned[name].to(value), share) if value.is_floating_point() else tuned[name]
        for name, value in anchor.items()
    }
