"""The contract table: one row per pure optimizer. A new optimizer is a new row; exceptions are fields of the row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import hyperopt_ftp as hft
from hyperopt_ftp import Optimizer

from .family import PURE

ANCHOR = {"w": torch.linspace(-1, 1, 12, dtype=torch.float64).view(3, 4), "b": torch.zeros(4, dtype=torch.float64)}

#: Shorter than any training of the tests: its last entry serves several updates.
TABLE = torch.tensor([0.1, 0.2, 0.05], dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    """An optimizer of the contract, and what of the contract does not hold for it."""

    name: str
    make: Callable[..., Optimizer]
    kwargs: dict[str, Any]
    flat: tuple[str, ...]  # hparams whose hypergradient is 0 by the rule
    smooth: bool  # False: torch's own rule jumps at these values
    steps: int  # after which the rule has shown what these values do
    own: tuple[str, ...]  # hparams whose names mean something else in DOMAINS
    whole: bool  # the rule looks at a tensor as a whole, not at each entry
    gaps: bool  # False: a gradient that is None is refused

    def build(self, **changes: Any) -> Optimizer:
        return self.make(**{**self.kwargs, **changes})

    def __str__(self) -> str:
        return self.name


def case(
    name: str, make: Callable[..., Optimizer], *,
    flat: tuple[str, ...] = (), smooth: bool = True, steps: int = 4, own: tuple[str, ...] = (),
    whole: bool = False, gaps: bool = True, **kwargs: Any,
) -> Case:  # fmt: skip
    """A row; the keywords that are no fields of it are arguments of the optimizer."""
    return Case(name, make, kwargs, flat, smooth, steps, own, whole, gaps)


# eps = 1e-2 where a root is divided by: well conditioned for finite differences.
# fmt: off
BASES = [
    case("sgd", hft.sgd, lr=0.1),
    case("sgd-dampening-without-momentum", hft.sgd, lr=0.1, dampening=0.3, smooth=False),
    case("sgd-momentum", hft.sgd, lr=0.1, momentum=0.9, dampening=0.2, weight_decay=0.05),
    case("sgd-nesterov", hft.sgd, lr=0.1, momentum=0.9, nesterov=True),
    case("adam", hft.adam, lr=0.1, eps=1e-2, weight_decay=0.05, betas=(0.8, 0.95)),
    case("adamw", hft.adamw, lr=0.1, eps=1e-2, weight_decay=0.1),
    case("adamw-amsgrad", hft.adamw, lr=0.1, eps=1e-2, amsgrad=True, betas=(0.5, 0.6)),
    case("rmsprop", hft.rmsprop, lr=0.05, eps=1e-2, alpha=0.9, momentum=0.5, weight_decay=0.1),
    case("rmsprop-centered", hft.rmsprop, lr=0.05, eps=1e-2, alpha=0.9, centered=True),
    case("adagrad", hft.adagrad, lr=0.1, eps=1e-2, lr_decay=0.1, weight_decay=0.1,
         initial_accumulator_value=0.2),
    case("adadelta", hft.adadelta, lr=0.5, rho=0.8, eps=1e-2, weight_decay=0.1),
    case("adamax", hft.adamax, lr=0.1, betas=(0.8, 0.6), eps=1e-2, weight_decay=0.1),
    case("nadam", hft.nadam, lr=0.1, betas=(0.8, 0.95), eps=1e-2, weight_decay=0.1,
         momentum_decay=0.3),
    case("nadam-decoupled", hft.nadam, lr=0.1, eps=1e-2, weight_decay=0.1,
         decoupled_weight_decay=True),
    # The first update that can be rectified is the sixth.
    case("radam", hft.radam, lr=0.1, betas=(0.8, 0.95), eps=1e-2, weight_decay=0.1, steps=7),
    case("radam-not-rectified", hft.radam, lr=0.1, betas=(0.8, 0.7), weight_decay=0.1,
         decoupled_weight_decay=True, flat=("eps",)),
    # Bounds that some step sizes reach and others do not.
    case("rprop", hft.rprop, lr=0.1, etas=(0.5, 1.2), step_sizes=(0.04, 0.13)),
    # The weights do not depend on t0.
    case("asgd", hft.asgd, lr=0.1, lambd=0.3, alpha=0.6, t0=1.5, weight_decay=0.1, flat=("t0",),
         own=("alpha",)),
    case("lion", hft.lion, lr=0.1, betas=(0.8, 0.95), weight_decay=0.1, flat=("betas",)),
    # "w" is larger than eps2, "b" is not.
    case("adafactor", hft.adafactor, lr=0.1, beta2_decay=-0.5, eps=(None, 0.9), d=1.05,
         weight_decay=0.1, whole=True),
    case("adafactor-eps1", hft.adafactor, lr=0.1, eps=(0.1, 0.9), d=1.5,
         own=("eps",), whole=True),
    case("adan", hft.adan, lr=0.1, betas=(0.8, 0.7, 0.95), eps=1e-2, weight_decay=0.1, own=("betas",)),
    case("adopt", hft.adopt, lr=0.1, betas=(0.8, 0.95), eps=0.05, weight_decay=0.1),
    case("adopt-without-clipping", hft.adopt, lr=0.1, betas=(0.8, 0.95), eps=0.05, weight_decay=0.1,
         clip_power=None, decoupled=True),
    case("schedule_free_sgd", hft.schedule_free_sgd, lr=0.3, momentum=0.7, weight_decay=0.1,
         warmup_steps=3, r=0.5, weight_lr_power=1.5),
    case("schedule_free_adamw", hft.schedule_free_adamw, lr=0.1, betas=(0.8, 0.95),
         eps=1e-2, weight_decay=0.1, warmup_steps=3, r=0.5),
    case("signum", hft.signum, lr=0.1, momentum=0.8, weight_decay=0.1, flat=("momentum",)),
    case("adabelief", hft.adabelief, lr=0.1, betas=(0.8, 0.95), eps=1e-2),
    case("yogi", hft.yogi, lr=0.1, betas=(0.8, 0.95), eps=1e-2, initial_accumulator_value=0.05),
    case("lamb", hft.lamb, lr=0.1, betas=(0.8, 0.95), eps=1e-2, weight_decay=0.1, whole=True),
    case("lars", hft.lars, lr=0.1, momentum=0.7, weight_decay=0.1, trust_coefficient=0.3, eps=0.1, whole=True),
    case("lars-nesterov", hft.lars, lr=0.1, momentum=0.7, trust_coefficient=0.3, nesterov=True, whole=True),
]
# fmt: on


def on_the_matrix(opt: Optimizer) -> Optimizer:
    """``opt`` for "w", which is a matrix, and SGD for the rest."""
    return hft.partition({"matrix": opt, "rest": hft.sgd(lr=0.1)}, {"w": "matrix", "*": "rest"})


# fmt: off
COMBINED = [
    # Two Newton-Schulz steps: five of these coefficients are a polynomial of degree 3125.
    case("muon", lambda **k: on_the_matrix(hft.muon(**k)), lr=0.1, weight_decay=0.1, momentum=0.8,
         ns_coefficients=(2.0, -1.5, 0.5), ns_steps=2),
    case("muon-eps", lambda **k: on_the_matrix(hft.muon(**k)), lr=0.1, eps=2.0, nesterov=False),
    case("clipped", lambda **k: hft.clipped(hft.sgd(lr=0.1, momentum=0.5), **k), max_norm=0.7),
    case("damped", lambda **k: hft.damped(hft.sgd(lr=0.1), **k), kappa=0.6),
    case("scheduled", lambda **k: hft.scheduled(hft.sgd(**k), lr=lambda t: 0.5**t), lr=0.1, momentum=0.5),
    case("scheduled-cosine", lambda **k: hft.scheduled(hft.sgd(lr=0.1, momentum=0.5), lr=hft.schedules.cosine(5, **k)),
         floor=0.2),
    # The peak is at a count of 1.4: no update is at a kink.
    case("scheduled-warm-up", lambda **k: hft.scheduled(hft.adamw(lr=0.1, eps=1e-2),
         lr=hft.schedules.warm_up(hft.schedules.cosine(4, floor=0.1), **k)), share=0.35, start=0.2),
    case("per_step", lambda **k: hft.per_step(hft.sgd(momentum=0.5), **k), lr=TABLE),
    case("projected", lambda **k: hft.projected(hft.adamw(lr=0.1, eps=1e-2), ANCHOR, **k), radius=0.35),
    case("projected-l2", lambda **k: hft.projected(hft.sgd(lr=0.1), ANCHOR, norm="l2", **k), radius=0.35),
    case("ftp", lambda **k: hft.ftp(hft.adamw(lr=0.1, eps=1e-2), ANCHOR, **k), radius_lr=0.1, kappa=0.8),
    case("ftp-exact-l2", lambda **k: hft.ftp(hft.sgd(lr=0.1), ANCHOR, norm="l2", gradient="exact", **k), radius_lr=0.1,
         kappa=0.8),
    case("l2sp", lambda **k: hft.l2sp(hft.sgd(lr=0.1, momentum=0.5), ANCHOR, **k), strength=0.3),
    case("l2sp-decoupled", lambda **k: hft.l2sp(hft.adamw(lr=0.1, eps=1e-2), ANCHOR, decoupled=True, **k),
         strength=0.3),
    case("cautious_decay", lambda **k: hft.cautious_decay(hft.adamw(lr=0.1, eps=1e-2), ANCHOR, **k), strength=0.3),
    case("spd", lambda **k: hft.spd(hft.adamw(lr=0.1, eps=1e-2), ANCHOR, **k), strength=0.7),
    case("directed", lambda **k: hft.directed(hft.sgd(lr=0.3, momentum=0.5), ANCHOR, **k), omega=0.6),
    case("digrap", lambda **k: hft.digrap(hft.sgd(lr=0.3, momentum=0.5), ANCHOR, **k), omega_lr=0.1),
    case("clipped_by_value", lambda **k: hft.clipped_by_value(hft.sgd(lr=0.1), **k), max_value=0.1),
    case("clipped_per_layer", lambda **k: hft.clipped_per_layer(hft.sgd(lr=0.1), **k), max_norm=0.5),
    case("clipped_adaptively", lambda **k: hft.clipped_adaptively(hft.sgd(lr=0.1), **k), ratio=0.2),
    case("noisy", lambda **k: hft.noisy(hft.sgd(lr=0.1, momentum=0.5), **k), scale=0.3, decay=0.55),
    case("accumulated", lambda **k: hft.accumulated(hft.adam(**k), every=2), lr=0.1, eps=1e-2, gaps=False),
    case("averaged", lambda **k: hft.averaged(hft.sgd(lr=0.1, momentum=0.5), **k), decay=0.9, flat=("decay",)),
    case("averaged-mean", lambda **k: hft.averaged(hft.sgd(**k), decay=None), lr=0.1, momentum=0.5),
    case("lookahead", lambda **k: hft.lookahead(hft.adam(lr=0.1, eps=1e-2), every=2, **k), alpha=0.4),
    case("decayed", lambda **k: hft.decayed(hft.sgd(lr=0.1, momentum=0.5), exclude="b", **k), weight_decay=0.3),
    case("partition", lambda **k: hft.partition({"fast": hft.adam(**k), "slow": hft.sgd(lr=0.1, momentum=0.5)},
         {"b": "fast", "*": "slow"}), lr=0.2, eps=1e-2),
    case("frozen-part", lambda **k: hft.partition({"moves": hft.sgd(**k), "stays": hft.frozen()},
         {"w": "moves", "b": "stays"}), lr=0.1, momentum=0.5),
    # "base.lr" is read by init only: the value in use is tuned.
    case("hyper", lambda **k: hft.hyper(hft.sgd(lr=0.05, momentum=0.9), by=hft.sgd(**k), over="lr"), lr=1e-3),
]
# fmt: on

#: Methods of the family that have no case of their own above, with the numbers of its table.
HELD = [
    case(
        method.name,
        lambda method=method, **numbers: method.held(hft.adamw(lr=0.1, eps=1e-2), ANCHOR, **numbers),
        **{name: x for name, x in method.options.items() if not isinstance(x, (bool, str))},
    )
    for method in PURE
    if method.pure.__name__ not in {row.name.partition("-")[0] for row in COMBINED}
]

CASES = BASES + COMBINED + HELD
