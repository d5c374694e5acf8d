"""The ways to learn one task after the other that are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import hyperopt_ftp as hft
from experiments.common import methods
from experiments.common.network import Network

if TYPE_CHECKING:
    from experiments.common.options import Options

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Place:
    """Where in the sequence a task stands."""

    first: bool  # the head is new: all zero, with nothing in it worth keeping
    imagenet: Weights  # in which the sequence began


@dataclass(frozen=True)
class Method:
    """`optimizer` is called anew for each task, with a model that has the weights at the task's beginning."""

    title: str
    about: str
    optimizer: Callable[[Network, Options, float, Place], torch.optim.Optimizer]
    mixes: bool = False  # after each task, the weights become a mean of those before and after it


def _alike(
    make: Callable[[Network, Options, float], torch.optim.Optimizer],
) -> Callable[[Network, Options, float, Place], torch.optim.Optimizer]:
    """The same for every task."""
    return lambda model, options, lr, place: make(model, options, lr)


def _ftp(
    model: Network, options: Options, lr: float, *, anchor: Weights | None, head_is_free: bool
) -> torch.optim.Optimizer:
    return hft.FTPAdamW(
        model.named_parameters(),
        lr=lr,
        weight_decay=options.weight_decay,
        anchor=anchor,
        exclude=(model.head,) if head_is_free else (),
        radius_lr=options.radius_lr,
        kappa=options.kappa,
        gradient=options.gradient,
    )


def ftp_kept(model: Network, options: Options, lr: float, place: Place) -> torch.optim.Optimizer:
    """ImageNet's weights have no head for these classes, so it stays free. From the second task on, the library
    begins each radius at the distance that the layer is from the anchor already."""
    anchor = {name: place.imagenet[name] for name, _ in model.named_parameters()}
    return _ftp(model, options, lr, anchor=anchor, head_is_free=True)


def ftp_moved(model: Network, options: Options, lr: float, place: Place) -> torch.optim.Optimizer:
    """From the second task on, the head has learnt something and is kept with the rest."""
    return _ftp(model, options, lr, anchor=None, head_is_free=place.first)


METHODS: Mapping[str, Method] = {
    "linear": Method("linear probe", "only the head moves", _alike(methods.linear)),
    "adamw": Method("AdamW", "every weight moves freely", _alike(methods.adamw)),
    "adamw_decay": Method("AdamW, weight decay", "AdamW with --strong-decay", _alike(methods.adamw_decay)),
    "wise_moved": Method(
        "WiSE-FT after each task",
        "AdamW, and after each task the mean of the weights before and after it",
        _alike(methods.adamw),
        mixes=True,
    ),
    "ftp_kept": Method("FTPAdamW, anchor kept", "FTPAdamW around the ImageNet weights throughout", ftp_kept),
    "ftp_moved": Method("FTPAdamW, anchor moved", "FTPAdamW around the weights at the start of each task", ftp_moved),
}


def mixed(before: Weights, after: Weights, share: float, fresh: str | None) -> Weights:
    """`(1 - share) before + share after`; parameters that match the pattern `fresh` are those after."""
    mean = hft.wise(after, before, strength=1 - share)
    if fresh is not None:
        mean |= {name: value for name, value in after.items() if name.startswith(fresh.removesuffix("*"))}
    return mean
