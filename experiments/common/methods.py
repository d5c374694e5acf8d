"""The ways of fine-tuning that are compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

import hyperopt_ftp as hft
from experiments.common.task import Network

if TYPE_CHECKING:  # it checks that the methods are these
    from experiments.common.options import AnchorOptions

T = TypeVar("T")
Weights: TypeAlias = Mapping[str, Tensor]

NESTEROV: dict[str, Any] = {"momentum": 0.9, "nesterov": True}
STRONG_DECAY = 0.1  # weight decay of adamw_decay
SHARES = (0.5, 0.25, 0.75)  # of the fine-tuned weights in WiSE-FT's means, and in LiNeS's first layer
MEAN_DECAY = 0.9  # of ema: the last ten steps or so
LATE = 8  # gamma of the mean that is kept of LDoG, its package's default
FIRST_LAYER = 0.1  # of the learning rate, in adamw_layers
RANK, SCALE = 8, 2.0  # of LoRA
#: Where few weights move, or not far, they want so many times the learning rate.
FASTER = {"linear": 10.0, "lora": 10.0, "ftp": 10.0}


Make = Callable[[Network, "AnchorOptions", float], torch.optim.Optimizer]
Mix = Callable[[Network, Sequence[Weights], Weights, Any], dict[str, Tensor]]  # of the ends, the anchor and a strength


@dataclass(frozen=True)
class Method:
    """An optimizer over some of the model's parameters, or weights made of those of another method; TPGM is neither."""

    title: str
    about: str
    optimizer: Make | None = None
    of: str | None = None  # no training of its own: `mix` makes it of the weights in which this method ends,
    others: int = 0  # and of those of so many more trainings by it, with other seeds
    mix: Mix | None = None
    mean: Callable[[int], float] | None = None  # made of a mean over the other's steps, not of its end: `keep_mean`
    after: str | None = None  # begins where a training by this method ends
    used: Callable[[float], Callable[[Weights, Weights], Weights]] | None = None  # in a step, of weights and anchor
    validates: bool = False  # trains on `train` and uses `validation`, instead of training on both
    mixes: bool = False  # afterwards mixes with the anchor, by shares that are learned on `validation`
    strong: Callable[[float], Make] | None = None  # the optimizer of a strength, in place of `optimizer`
    linear_layers: bool = False  # is for networks that are made of these
    warm_up: float = 0.0  # share of the steps in which the learning rate rises from 0; a cosine follows
    constant: bool = False  # the learning rate stays as it is
    strengths: tuple[float, ...] = ()  # the usual one first; where learning rates are chosen, so is the strength

    @property
    def usual(self) -> Any:
        """The strength unless one is chosen; None where there is none."""
        return next(iter(self.strengths), None)

    def make(self, strength: float | None) -> Make | None:
        """What builds the optimizer; `strength` None is the usual one."""
        if self.strong is None:
            return self.optimizer
        return self.strong(self.usual if strength is None else strength)

    def in_a_step(self, strength: float | None) -> Callable[[Weights, Weights], Weights] | None:
        """What makes the weights of a forward pass of training; None: they are used as they are."""
        return None if self.used is None else self.used(self.usual if strength is None else strength)


def adamw(model: Network, options: AnchorOptions, lr: float) -> torch.optim.Optimizer:
    return _adamw(model.named_parameters(), lr, options.weight_decay)


def _adamw(params: Any, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """In one kernel: a training of MiniLM takes 25 s in place of 34."""
    return torch.optim.AdamW(params, lr=lr, weight_decay=weight_decay, fused=True)


def adamw_decay(model: Network, options: AnchorOptions, lr: float) -> torch.optim.Optimizer:
    return _adamw(model.named_parameters(), lr, STRONG_DECAY)


def linear(model: Network, options: AnchorOptions, lr: float) -> torch.optim.Optimizer:
    model.freeze_backbone()
    return _adamw(model.head_parameters(), lr, options.weight_decay)


def _sgd(model: Network, options: AnchorOptions, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.named_parameters(), lr=lr, weight_decay=options.weight_decay, **NESTEROV)


def _ftp_sgd(model: Network, options: AnchorOptions, lr: float) -> torch.optim.Optimizer:
    """Without weight decay, as the authors' is."""
    return hft.FTPSGD(model.named_parameters(), lr=lr, exclude=free_parameters(model, options), **NESTEROV)


def _by_layer(model: Network, options: AnchorOptions, lr: float) -> torch.optim.Optimizer:
    """Learning rates that fall geometrically from the head's to a tenth at the input (ULMFiT, arXiv 1801.06146, sec.
    3.2, which divides by 2.6 from layer to layer)."""
    groups = hft.depth_groups(model.named_parameters(), model.layers, {"depth": 1.0}, depth=(0.0, 1.0))
    for group in groups:
        group["lr"] = lr * FIRST_LAYER ** (1 - group["depth"])
    return _adamw(groups[::-1], lr, options.weight_decay)  # logs show that of the first one


def _faster_head(model: Network, options: AnchorOptions, lr: float) -> torch.optim.Optimizer:
    head = dict(model.head_parameters())
    body = [(name, parameter) for name, parameter in model.named_parameters() if name not in head]
    return _adamw(
        [{"params": body}, {"params": [*head.items()], "lr": FASTER["linear"] * lr}], lr, options.weight_decay
    )


class _LowRank(nn.Module):
    """W + SCALE B A, with B zero at first (LoRA, arXiv 2106.09685, eq. 3; A as in the authors' code)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.a = nn.Parameter(weight.new_empty(RANK, weight.shape[1]))
        self.b = nn.Parameter(weight.new_zeros(weight.shape[0], RANK))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + SCALE * self.b @ self.a


def _lora(model: Network, options: AnchorOptions, lr: float) -> torch.optim.Optimizer:
    model.freeze_backbone()
    adapted = [m for name, m in model.named_modules() if name.rpartition(".")[2] in ("query", "value")]
    for module in adapted:
        register_parametrization(module, "weight", _LowRank(module.get_parameter("weight")))
    moving = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return _adamw(moving, lr, options.weight_decay)


def keep_mean(optimizer: torch.optim.Optimizer, share: Callable[[int], float]) -> None:
    """Keep a mean of the weights over the steps in the optimizer's state, and so in checkpoints: those after step t,
    from 1, move it by a share of the way."""

    def follow(*_: object) -> None:
        for parameter in (p for group in optimizer.param_groups for p in group["params"] if p.grad is not None):
            state, now = optimizer.state[parameter], parameter.detach()
            state["averaged"] = state.get("averaged", 0) + 1
            mean = state["mean"] if "mean" in state else now.clone()
            state["mean"] = mean.lerp_(now, share(state["averaged"]))

    optimizer.register_step_post_hook(follow)


def kept_mean(model: Network, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All weights of the model, those that have such a mean by it."""
    moved = {name: optimizer.state[p] for name, p in model.named_parameters() if "mean" in optimizer.state.get(p, {})}
    return model.state_dict() | {name: state["mean"] for name, state in moved.items()}


def free_parameters(model: Network, options: AnchorOptions) -> tuple[str, ...]:
    """The head of an anchor that was trained is constrained with the rest; a new one knows nothing worth keeping."""
    return (model.head,) if options.head_is_new else ()


def held(model: Network, options: AnchorOptions, entries: Mapping[str, T]) -> dict[str, T]:
    """Those of the entries, by name, that have an anchor: all but a new head."""
    free = free_parameters(model, options)
    return {name: entry for name, entry in entries.items() if not any(fnmatchcase(name, head) for head in free)}


def _ftp(**fixed: Any) -> Make:
    def make(model: Network, options: AnchorOptions, lr: float) -> torch.optim.Optimizer:
        return hft.FTPAdamW(
            model.named_parameters(),
            lr=lr,
            weight_decay=options.weight_decay,
            exclude=free_parameters(model, options),
            **fixed,
        )

    return make


def _around(kind: Callable[..., torch.optim.Optimizer], name: str, **fixed: float | bool) -> Callable[[float], Make]:
    """A class of the anchored family around AdamW, by its strength, which the class calls `name`."""

    def of(strength: float) -> Make:
        def make(model: Network, options: AnchorOptions, lr: float) -> torch.optim.Optimizer:
            free = {"exclude": free_parameters(model, options)}
            return kind(adamw(model, options, lr), **{name: strength, **free, **fixed})

        return make

    return of


def _prodigy(model: Network, lr: float) -> torch.optim.Optimizer:
    from prodigyopt import Prodigy

    return Prodigy(model.named_parameters(), lr=lr)


def _ldog(model: Network, lr: float) -> torch.optim.Optimizer:
    """The first step, relative to the weights, is as its package advises: larger with BatchNorm."""
    from dog import LDoG

    normalized = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    return LDoG(model.named_parameters(), reps_rel=1e-4 if normalized else 1e-6, lr=lr)


def _dadapt(model: Network, lr: float) -> torch.optim.Optimizer:
    from dadaptation import DAdaptAdam

    return DAdaptAdam(model.named_parameters(), lr=lr)


def _schedule_free(model: Network, lr: float) -> torch.optim.Optimizer:
    from schedulefree import AdamWScheduleFree

    return AdamWScheduleFree(model.named_parameters(), lr=lr)


def _plain(base: Callable[[Network, float], torch.optim.Optimizer]) -> Make:
    return lambda model, options, lr: base(model, lr)


def _within(base: Callable[[Network, float], torch.optim.Optimizer]) -> Make:
    return lambda model, options, lr: hft.FTP(base(model, lr), exclude=free_parameters(model, options))


def _hypergradient_descent(lr_lr: float) -> Make:
    """AdamW whose learning rate follows its hypergradient (arXiv 1703.04782, eq. 8), and is scheduled beside that."""

    def make(model: Network, options: AnchorOptions, lr: float) -> torch.optim.Optimizer:
        optimizer, before = adamw(model, options, lr), {}

        def learn(*_: object) -> None:
            state = optimizer.state  # that of a checkpoint is another object
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
                        optimizer.state[p]["direction"] = (before.pop(p) - p.detach()) / (group["lr"] or 1.0)

        optimizer.register_step_pre_hook(learn)
        optimizer.register_step_post_hook(note)
        return optimizer

    return make


def _by_depth(strength: float) -> Make:
    """SPD with a strength that falls to 0 at the last layer before the head, as in MAPS."""

    def make(model: Network, options: AnchorOptions, lr: float) -> torch.optim.Optimizer:
        head = {"constrained": False} if free_parameters(model, options) else {"strength": 0.0}
        groups = hft.depth_groups(model.named_parameters(), model.layers, head, strength=(strength, 0.0))
        return hft.SPD(_adamw(groups, lr, options.weight_decay))

    return make


def _muon(within_radius: bool) -> Make:
    """Muon for the matrices between the first layer and the head, AdamW for the rest; Muon's steps are made as long as
    AdamW's, so that the same learning rates do."""

    def make(model: Network, options: AnchorOptions, lr: float) -> torch.optim.Optimizer:
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


def _wise(model: Network, ends: Sequence[Weights], anchor: Weights, share: float) -> dict[str, Tensor]:
    return hft.wise(ends[0], anchor, 1 - share)


def _lines(model: Network, ends: Sequence[Weights], anchor: Weights, share: float) -> dict[str, Tensor]:
    """The head, where the anchor has one, is the last layer."""
    layers = [*model.layers, model.head] if any(fnmatchcase(name, model.head) for name in anchor) else model.layers
    return hft.lines(ends[0], anchor, layers, alpha=share, beta=1 - share)


def _model_stock(model: Network, ends: Sequence[Weights], anchor: Weights, _: None) -> dict[str, Tensor]:
    return hft.model_stock(ends, anchor)[0]


def _mean(model: Network, ends: Sequence[Weights], anchor: Weights, _: None) -> dict[str, Tensor]:
    return {name: torch.stack([end[name] for end in ends]).double().mean(0) for name in ends[0]}


def _late(step: int) -> float:
    """Weights by about the ninth power of their step (Shamir and Zhang, arXiv 1212.1824, section 3.2)."""
    return (1 + LATE) / (step + LATE)


METHODS: Mapping[str, Method] = {
    "linear": Method("linear probe", "only the head moves", linear),
    "adamw": Method("AdamW", "every weight moves freely", adamw),
    "adamw_decay": Method("AdamW, weight decay", f"AdamW with a weight decay of {STRONG_DECAY:g}", adamw_decay),
    "adamw_warmup": Method(
        "AdamW, warm-up", "AdamW whose learning rate rises in the first fifth of the steps", adamw, warm_up=0.2
    ),
    "adamw_layers": Method(
        "AdamW, layer-wise lr", "AdamW whose learning rate falls to a tenth at the first layer", _by_layer
    ),
    "adamw_head": Method("AdamW, faster head", "AdamW whose head has ten times the learning rate", _faster_head),
    "ema": Method(
        "AdamW, EMA",
        "the exponential mean of AdamW's weights over its last steps",
        of="adamw",
        mix=_mean,
        mean=lambda step: 1 - MEAN_DECAY,
    ),
    "lp_ft": Method("LP-FT", "AdamW after a linear probe at ten times the learning rate", adamw, after="linear"),
    "lora": Method("LoRA", "adapters of rank 8 of queries and values, and the head", _lora, linear_layers=True),
    "ftp": Method("FTPAdamW", "every weight stays within a learned radius of the anchor", _ftp()),
    "nesterov": Method("SGD", "every weight moves freely, by SGD with Nesterov momentum 0.9", _sgd),
    "ftp_nesterov": Method("FTPSGD", "the same within learned radii, without weight decay", _ftp_sgd),
    "ftp_exact": Method("FTPAdamW exact", "ftp by the true hypergradient of its radii", _ftp(gradient="exact")),
    "ftp_kappa0": Method("FTPAdamW kappa 0", "ftp with kappa 0: a hypergradient shrinks no radius", _ftp(kappa=0.0)),
    "ftp_exact_kappa0": Method("FTPAdamW exact, kappa 0", "ftp with both", _ftp(gradient="exact", kappa=0.0)),
    "ftp_radius": Method(
        "FTPAdamW, radius_lr",
        "ftp whose radii move at such a rate",
        strong=lambda rate: _ftp(radius_lr=rate),
        strengths=(0.03, 0.1, 0.3),
    ),
    "ftp_start": Method("FTPAdamW, free first step", "ftp whose first step is AdamW's own", _ftp(radius_start=10.0)),
    "tpgm": Method("TPGM", "AdamW projected, radii learned on validation examples at every step", validates=True),
    "wise": Method("WiSE-FT", "mean of the anchor and of AdamW's weights", of="adamw", mix=_wise, strengths=SHARES),
    "wise_warmup": Method(
        "WiSE-FT, warm-up", "the same mean, of adamw_warmup's", of="adamw_warmup", mix=_wise, strengths=SHARES
    ),
    "wise_ftp": Method("WiSE-FT of FTPAdamW", "the same mean, of ftp's weights", of="ftp", mix=_wise, strengths=SHARES),
    "lines": Method(
        "LiNeS",
        "AdamW's weights, of which the first layers keep a share and the last ones all",
        of="adamw",
        mix=_lines,
        strengths=SHARES,
    ),
    "soup": Method("uniform soup", "the mean of AdamW's weights of two trainings", of="adamw", others=1, mix=_mean),
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
    "prodigy": Method("Prodigy", "an Adam that estimates its learning rate", _plain(_prodigy)),
    "dadapt": Method("D-Adapted Adam", "another", _plain(_dadapt)),
    "ldog": Method(
        "LDoG", "SGD whose rate follows each layer's distance from its first weights", _plain(_ldog), constant=True
    ),
    "ldog_mean": Method("LDoG, averaged", "the mean of its weights over the steps", of="ldog", mix=_mean, mean=_late),
    "schedule_free": Method(
        "schedule-free AdamW", "an AdamW that averages in place of a schedule", _plain(_schedule_free), constant=True
    ),
    "ftp_prodigy": Method("FTP around Prodigy", "Prodigy within learned radii", _within(_prodigy)),
    "ftp_dadapt": Method("FTP around D-Adapted Adam", "D-Adapted Adam within them", _within(_dadapt)),
    "ftp_ldog": Method("FTP around LDoG", "LDoG within them", _within(_ldog), constant=True),
    "ftp_ldog_mean": Method(
        "FTP around LDoG, averaged", "the mean of its weights over the steps", of="ftp_ldog", mix=_mean, mean=_late
    ),
    "ftp_schedule_free": Method(
        "FTP around schedule-free AdamW", "schedule-free AdamW within them", _within(_schedule_free), constant=True
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
