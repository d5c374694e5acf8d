"""The ways of fine-tuning that are compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor

import hyperopt_ftp as hft
from experiments.common.task import Network

T = TypeVar("T")
Weights: TypeAlias = Mapping[str, Tensor]


STRONG_DECAY = 0.1  # weight decay of adamw_decay
WISE = 0.5  # share of the fine-tuned weights in WiSE-FT's means


class Options(Protocol):
    """What methods read of a study's options."""

    @property
    def weight_decay(self) -> float:
        """Decoupled, as in AdamW."""
        ...

    @property
    def head_is_new(self) -> bool:
        """The anchor has no head for the task."""
        ...


Make = Callable[[Network, Options, float], torch.optim.Optimizer]
Mix = Callable[[Options, Network, Sequence[Weights], Weights], dict[str, Tensor]]  # of the ends and the anchor


@dataclass(frozen=True)
class Method:
    """An optimizer over some of the model's parameters, or weights made of those of another method; TPGM is neither."""

    title: str
    about: str
    optimizer: Make | None = None
    of: str | None = None  # no training of its own: `mix` makes it of the weights in which this method ends,
    others: int = 0  # and of those of so many more trainings by it, with other seeds
    mix: Mix | None = None
    used: Callable[[float], Callable[[Weights, Weights], Weights]] | None = None  # in a step, of weights and anchor
    validates: bool = False  # trains on `train` and uses `validation`, instead of training on both
    mixes: bool = False  # afterwards mixes with the anchor, by shares that are learned on `validation`
    strong: Callable[[float], Make] | None = None  # the optimizer of a strength, in place of `optimizer`
    linear_layers: bool = False  # is for networks that are made of these
    warm_up: float = 0.0  # share of the steps in which the learning rate rises from 0; a cosine follows
    strengths: tuple[float, ...] = ()  # the usual one first; where learning rates are chosen, so is the strength

    def make(self, strength: float | None) -> Make | None:
        """What builds the optimizer; `strength` None is the usual one."""
        if self.strong is None:
            return self.optimizer
        return self.strong(self._strength(strength))

    def in_a_step(self, strength: float | None) -> Callable[[Weights, Weights], Weights] | None:
        """What makes the weights of a forward pass of training; None: they are used as they are."""
        return None if self.used is None else self.used(self._strength(strength))

    def _strength(self, strength: float | None) -> float:
        return self.strengths[0] if strength is None else strength


def adamw(model: Network, options: Options, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.named_parameters(), lr=lr, weight_decay=options.weight_decay)


def adamw_decay(model: Network, options: Options, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.named_parameters(), lr=lr, weight_decay=STRONG_DECAY)


def linear(model: Network, options: Options, lr: float) -> torch.optim.Optimizer:
    model.freeze_backbone()
    return torch.optim.AdamW(model.head_parameters(), lr=lr, weight_decay=options.weight_decay)


def free_parameters(model: Network, options: Options) -> tuple[str, ...]:
    """The head of an anchor that was trained is constrained with the rest; a new one knows nothing worth keeping."""
    return (model.head,) if options.head_is_new else ()


def held(model: Network, options: Options, entries: Mapping[str, T]) -> dict[str, T]:
    """Those of the entries, by name, that have an anchor: all but a new head."""
    free = free_parameters(model, options)
    return {name: entry for name, entry in entries.items() if not any(fnmatchcase(name, head) for head in free)}


def _ftp(**fixed: Any) -> Make:
    def make(model: Network, options: Options, lr: float) -> torch.optim.Optimizer:
        return hft.FTPAdamW(
            model.named_parameters(),
            lr=lr,
            weight_decay=options.weight_decay,
            exclude=free_parameters(model, options),
            **fixed,
        )

    return make


def _ftp_share(share: float) -> Make:
    """FTP whose radii move by a share of what AdamW can move a row in a step, its width times the learning rate."""

    def make(model: Network, options: Options, lr: float) -> torch.optim.Optimizer:
        widths: dict[int, list[tuple[str, Tensor]]] = {}
        for name, parameter in model.named_parameters():
            rows = parameter.shape[0] if parameter.ndim > 1 else 1
            widths.setdefault(parameter.numel() // rows, []).append((name, parameter))
        free = free_parameters(model, options)
        groups = [{"params": named, "width": width} for width, named in widths.items()]
        optimizer = hft.FTPAdamW(groups, lr=lr, weight_decay=options.weight_decay, exclude=free, gradient="exact")

        def follow(*_: object) -> None:
            for group in optimizer.param_groups:
                group["radius_lr"] = share * group["width"] * group["lr"]

        optimizer.register_step_pre_hook(follow)
        return optimizer

    return make


def _around(kind: Callable[..., torch.optim.Optimizer], name: str, **fixed: float | bool) -> Callable[[float], Make]:
    """A class of the anchored family around AdamW, by its strength, which the class calls `name`."""

    def of(strength: float) -> Make:
        def make(model: Network, options: Options, lr: float) -> torch.optim.Optimizer:
            free = {"exclude": free_parameters(model, options)}
            return kind(adamw(model, options, lr), **{name: strength, **free, **fixed})

        return make

    return of


def _hypergradient_descent(lr_lr: float) -> Make:
    """AdamW whose learning rate follows its hypergradient (arXiv 1703.04782, eq. 8), and is scheduled beside that."""

    def make(model: Network, options: Options, lr: float) -> torch.optim.Optimizer:
        optimizer = adamw(model, options, lr)
        state, before = optimizer.state, {}

        def learn(*_: object) -> None:
            for group in optimizer.param_groups:
                moving = [p for p in group["params"] if p.grad is not None]
                known = [p for p in moving if "direction" in state.get(p, {})]
                move = lr_lr * sum(float((p.grad * state[p]["direction"]).sum()) for p in known)
                group["lr"] = max(group["lr"] + (move if math.isfinite(move) else 0.0), 0.0)
                before.update((p, p.detach().clone()) for p in moving)

        def note(*_: object) -> None:
            for group in optimizer.param_groups:
                for p in group["params"]:
                    if p in before:
                        state[p]["direction"] = (before.pop(p) - p.detach()) / (group["lr"] or 1.0)

        optimizer.register_step_pre_hook(learn)
        optimizer.register_step_post_hook(note)
        return optimizer

    return make


def _by_depth(strength: float) -> Make:
    """SPD with a strength that falls to 0 at the last layer before the head, as in MAPS."""

    def make(model: Network, options: Options, lr: float) -> torch.optim.Optimizer:
        head = {"constrained": False} if free_parameters(model, options) else {"strength": 0.0}
        groups = hft.depth_groups(model.named_parameters(), model.layers, head, strength=(strength, 0.0))
        return hft.SPD(torch.optim.AdamW(groups, lr=lr, weight_decay=options.weight_decay))

    return make


def _muon(within_radius: bool) -> Make:
    """Muon for the matrices between the first layer and the head, AdamW for the rest; Muon's steps are made as long as
    AdamW's, so that the same learning rates do."""

    def make(model: Network, options: Options, lr: float) -> torch.optim.Optimizer:
        params = dict(model.named_parameters())
        inner = hft.by_depth(params, model.layers, 0.0, 1.0)
        matrices = {name for name, depth in inner.items() if depth > 0 and params[name].ndim == 2}
        decay = options.weight_decay
        parts = {
            "matrices": hft.muon(lr, decay, adjust_lr_fn="match_rms_adamw", ns_dtype=torch.float32),
            "rest": hft.adamw(lr=lr, weight_decay=decay),
        }
        optimizer = hft.partition(parts, lambda path: "matrices" if path in matrices else "rest")
        if within_radius:
            anchor = {name: value.detach().clone() for name, value in held(model, options, params).items()}
            optimizer = hft.ftp(optimizer, anchor)
        return hft.PureOptimizer(list(params.items()), optimizer)

    return make


def _wise(options: Options, model: Network, ends: Sequence[Weights], anchor: Weights) -> dict[str, Tensor]:
    return hft.wise(ends[0], anchor, 1 - WISE)


def _lines(options: Options, model: Network, ends: Sequence[Weights], anchor: Weights) -> dict[str, Tensor]:
    """The head, where the anchor has one, is the last layer."""
    layers = [*model.layers, model.head] if any(fnmatchcase(name, model.head) for name in anchor) else model.layers
    return hft.lines(ends[0], anchor, layers)


def _model_stock(options: Options, model: Network, ends: Sequence[Weights], anchor: Weights) -> dict[str, Tensor]:
    return hft.model_stock(ends, anchor)[0]


METHODS: Mapping[str, Method] = {
    "linear": Method("linear probe", "only the head moves", linear),
    "adamw": Method("AdamW", "every weight moves freely", adamw),
    "adamw_decay": Method("AdamW, weight decay", f"AdamW with a weight decay of {STRONG_DECAY:g}", adamw_decay),
    "adamw_warmup": Method(
        "AdamW, warm-up", "AdamW whose learning rate rises in the first fifth of the steps", adamw, warm_up=0.2
    ),
    "ftp": Method("FTPAdamW", "every weight stays within a learned radius of the anchor", _ftp()),
    "ftp_exact": Method("FTPAdamW exact", "ftp by the true hypergradient of its radii", _ftp(gradient="exact")),
    "ftp_kappa0": Method("FTPAdamW kappa 0", "ftp with kappa 0: a hypergradient shrinks no radius", _ftp(kappa=0.0)),
    "ftp_exact_kappa0": Method("FTPAdamW exact, kappa 0", "ftp with both", _ftp(gradient="exact", kappa=0.0)),
    "ftp_share": Method(
        "FTPAdamW exact, share", "ftp_exact whose radii move by 0.2 of width x lr a step", _ftp_share(0.2)
    ),
    "ftp_start": Method("FTPAdamW, free first step", "ftp whose first step is AdamW's own", _ftp(radius_start=10.0)),
    "tpgm": Method("TPGM", "AdamW projected, radii learned on validation examples at every step", validates=True),
    "wise": Method("WiSE-FT", "mean of the anchor and of AdamW's weights, made after training", of="adamw", mix=_wise),
    "wise_warmup": Method("WiSE-FT, warm-up", "the same mean, of adamw_warmup's", of="adamw_warmup", mix=_wise),
    "wise_ftp": Method("WiSE-FT of FTPAdamW", "the same mean, of ftp's weights", of="ftp", mix=_wise),
    "lines": Method(
        "LiNeS", "AdamW's weights, of which the first layers keep half and the last ones all", of="adamw", mix=_lines
    ),
    "model_stock": Method(
        "Model Stock",
        "AdamW's weights of two trainings, averaged with the anchor by the angle between them",
        of="adamw",
        others=1,
        mix=_model_stock,
    ),
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
    "maps": Method(
        "SPD by depth (MAPS)",
        "SPD whose strength falls to 0 at the last layer",
        strong=_by_depth,
        strengths=(1.0, 0.3),
    ),
    "mixout": Method(
        "Mixout",
        "AdamW, and in each step the weights of some inputs are the anchor's",
        strong=lambda _: adamw,
        strengths=(0.5, 0.8),
        used=lambda p: partial(hft.mixout, p=p),
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
    "muon": Method("Muon", "Muon for the matrices, AdamW for the rest", _muon(within_radius=False), linear_layers=True),
    "ftp_muon": Method(
        "FTP around Muon", "the same within a learned radius", _muon(within_radius=True), linear_layers=True
    ),
    "hypergradient": Method(
        "AdamW, learned lr",
        "hypergradient descent of AdamW's learning rate",
        strong=_hypergradient_descent,
        strengths=(1e-7, 1e-6),
    ),
}

#: Methods that need no training: they are made of the weights in which another one ends.
FOLLOWS = {name: method.of for name, method in METHODS.items() if method.of is not None}


def title(name: str) -> str:
    return "anchor, not fine-tuned" if name == "anchor" else METHODS[name].title
