"""The ways of fine-tuning that are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

import hyperopt_ftp as hft
from experiments.common.network import Network

if TYPE_CHECKING:
    from experiments.common.options import Options


Make = Callable[[Network, "Options", float], torch.optim.Optimizer]


@dataclass(frozen=True)
class Method:
    """Either an optimizer over some of the model's parameters, or (`radii`) a bilevel training of the radii."""

    title: str
    about: str
    optimizer: Make | None = None
    validates: bool = False  # trains on `train` and uses `validation`, instead of training on both
    mixes: bool = False  # afterwards mixes with the anchor, by shares that are learned on `validation`
    strong: Callable[[float], Make] | None = None  # the optimizer of a strength, in place of `optimizer`
    strengths: tuple[float, ...] = ()  # the usual one first; where learning rates are chosen, so is the strength

    def make(self, strength: float | None) -> Make | None:
        """What builds the optimizer; `strength` None is the usual one."""
        if self.strong is None:
            return self.optimizer
        return self.strong(self.strengths[0] if strength is None else strength)


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


def _ftp(**fixed: float | str) -> Make:
    def make(model: Network, options: Options, lr: float) -> torch.optim.Optimizer:
        return hft.FTPAdamW(
            model.named_parameters(),
            lr=lr,
            weight_decay=options.weight_decay,
            exclude=free_parameters(model, options),
            **{"radius_lr": options.radius_lr, "kappa": options.kappa, "gradient": options.gradient, **fixed},
        )

    return make


def _around(held: Callable[..., torch.optim.Optimizer], name: str, **fixed: float | bool) -> Callable[[float], Make]:
    """A class of the anchored family around AdamW, by its strength, which the class calls `name`."""

    def of(strength: float) -> Make:
        def make(model: Network, options: Options, lr: float) -> torch.optim.Optimizer:
            free = {"exclude": free_parameters(model, options)}
            return held(adamw(model, options, lr), **{name: strength, **free, **fixed})

        return make

    return of


def _hypergradient_descent(lr_lr: float) -> Make:
    return lambda model, options, lr: hft.HypergradientDescent(adamw(model, options, lr), lr_lr=lr_lr)


METHODS: Mapping[str, Method] = {
    "linear": Method("linear probe", "only the head moves", linear),
    "adamw": Method("AdamW", "every weight moves freely", adamw),
    "adamw_decay": Method("AdamW, weight decay", "AdamW with --strong-decay", adamw_decay),
    "ftp": Method("FTPAdamW", "every weight stays within a learned radius of the anchor", _ftp()),
    "ftp_exact": Method("FTPAdamW exact", "ftp with --gradient exact", _ftp(gradient="exact")),
    "ftp_kappa0": Method("FTPAdamW kappa 0", "ftp with --kappa 0", _ftp(kappa=0.0)),
    "ftp_exact_kappa0": Method("FTPAdamW exact, kappa 0", "ftp with both", _ftp(gradient="exact", kappa=0.0)),
    "ftp_start": Method("FTPAdamW, free first step", "ftp whose first step is AdamW's own", _ftp(radius_start=10.0)),
    "tpgm": Method("TPGM", "AdamW projected, radii learned on validation examples at every step", validates=True),
    "wise": Method("WiSE-FT", "mean of the anchor and of AdamW's weights, made after training"),
    "wise_ftp": Method("WiSE-FT of FTPAdamW", "the same mean, of ftp's weights"),
    "learned_wise": Method(
        "WiSE-FT, learned shares",
        "AdamW, and afterwards a share of the anchor for each tensor, learned on validation examples",
        adamw,
        validates=True,
        mixes=True,
    ),
    "l2sp": Method(
        "L2-SP", "AdamW on the loss plus a penalty", strong=_around(hft.L2SP, "strength"), strengths=(0.1, 1.0)
    ),
    "l2sp_decoupled": Method(
        "L2-SP decoupled",
        "AdamW that decays toward the anchor",
        strong=_around(hft.L2SP, "strength", decoupled=True),
        strengths=(10.0, 50.0),
    ),
    "cautious": Method(
        "cautious decay",
        "the same, only where AdamW's own step leads there",
        strong=_around(hft.CautiousDecay, "strength"),
        strengths=(10.0, 50.0),
    ),
    "spd": Method(
        "SPD", "AdamW with selective projection decay", strong=_around(hft.SPD, "strength"), strengths=(1.0, 0.3)
    ),
    "digrap": Method(
        "DiGraP",
        "AdamW on gradients that are projected by a learned strength",
        strong=_around(hft.DiGraP, "omega_lr"),
        strengths=(0.01, 0.1),
    ),
    "mars_sp": Method(
        "MARS-SP",
        "every weight stays within a fixed radius of the anchor",
        strong=_around(hft.MARSSP, "radius"),
        strengths=(0.1, 0.5),
    ),
    "hypergradient": Method(
        "AdamW, learned lr",
        "hypergradient descent of AdamW's learning rate",
        strong=_hypergradient_descent,
        strengths=(1e-7, 1e-6),
    ),
}

#: Methods that need no training: they are made of the weights in which another one ends.
FOLLOWS = {"wise": "adamw", "wise_ftp": "ftp"}


def title(name: str) -> str:
    return "anchor, not fine-tuned" if name == "anchor" else METHODS[name].title
