"""The methods. Each has twelve settings, chosen on meta-validation episodes; what was chosen is tested once."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

import hyperopt_ftp as hft
from experiments.meta.few_shot.adaptation import (
    FIT_STEPS,
    Adaptation,
    Learned,
    Net,
    accuracies,
    anchored,
    everything,
    head,
    head_alone,
    logistic,
    near,
    nearest_mean,
    network,
)
from experiments.meta.few_shot.config import INPUTS, WAYS, WIDTH
from experiments.meta.few_shot.data import Both, World
from experiments.meta.few_shot.meta import OuterLoss, first_order, meta_train, pretrain, through
from hyperopt_ftp import tree

TITLES = {
    "mean": "class means",
    "linear": "linear head",
    "pretrained-linear": "pre-trained, linear head",
    "pretrained": "pre-trained, fine-tuned",
    "maml": "MAML",
    "first-order": "first-order MAML",
    "anil": "ANIL",
    "meta-sgd": "Meta-SGD",
    "implicit": "implicit MAML",
    "maml-plain": "MAML, long",
    "maml-ftp": "MAML, long, FTP",
}
L2S = tuple(10 ** (-3 + 5 * i / 11) for i in range(12))
WHITENING = tuple(i / 5 for i in range(6))  # power of the standard deviation that inputs are divided by
RATES = (0.1, 0.3, 1.0)
DECAYS = (0.0, 0.01, 0.1, 0.3)
RADIUS_LRS = (0.01, 0.1, 1.0, 10.0)


def step_counts(inner_steps: int) -> tuple[int, ...]:
    """Of an adaptation, to choose from: as many as in meta-training, and more."""
    return tuple(factor * inner_steps for factor in (1, 2, 4, 8))


def marks(inner_steps: int) -> tuple[int, ...]:
    """Of the curves."""
    return (*range(1, inner_steps), *step_counts(inner_steps))


class Candidate(NamedTuple):
    """One or several settings of a method: those that differ in the number of steps share a training."""

    settings: str
    accuracies: Callable[[Both, Sequence[int]], Tensor]  # after so many steps: [episode, number of steps]
    steps: tuple[int, ...]
    seconds: float = 0.0  # of meta-training or pre-training


def trained(settings: str, adapt: Adaptation, learned: Learned, steps: tuple[int, ...], seconds: float) -> Candidate:
    return Candidate(settings, lambda both, marks: accuracies(adapt, learned, both, marks), steps, seconds)


def outcome(candidates: Sequence[Candidate], world: World, marks: Sequence[int] = ()) -> dict:
    """Of the best setting on validation: accuracy on the test, and after `marks` steps."""
    validation = world.episodes("validation").batches(world.inputs)
    tried: dict[str, float] = {}
    best, score = (candidates[0], candidates[0].steps[0]), -math.inf
    for candidate in candidates:
        found = candidate.accuracies(validation, candidate.steps).mean(dim=0).tolist()
        for steps, share in zip(candidate.steps, found, strict=True):
            tried[_settings(candidate, steps)] = round(100 * share, 2)
            if share > score:
                best, score = (candidate, steps), share
    candidate, steps = best
    test = world.episodes("test").batches(world.inputs)
    start = time.process_time()
    shares = 100 * candidate.accuracies(test, (steps,))[:, 0]
    seconds = time.process_time() - start
    result = {
        "accuracy": shares.mean().item(),
        "chosen": _settings(candidate, steps),
        "tried": tried,
        "training_seconds": candidate.seconds,
        "adaptation_ms": 1000 * seconds / len(shares),
    }
    if marks:
        result["curve"] = (100 * candidate.accuracies(test, marks).mean(dim=0)).tolist()
    return result


def _settings(candidate: Candidate, steps: int) -> str:
    return f"{candidate.settings}, {steps} steps" if len(candidate.steps) > 1 else candidate.settings


@dataclass(frozen=True)
class MetaLearner:
    """The number is the inner learning rate, of implicit MAML the strength of its pull."""

    adapt: Callable[[float], Adaptation]
    outer: Callable[[Adaptation, int], OuterLoss]
    learned: Callable[[Net, float], Learned] = lambda net, _: {"net": net}
    numbers: tuple[float, ...] = RATES
    called: str = "lr"


def _with_rates(net: Net, rate: float) -> Learned:
    return {"net": net, "lr": tree.map_tree(lambda p: torch.full_like(p, rate), net)}


def _implicit(adapt: Adaptation, steps: int) -> OuterLoss:
    return through(adapt, 2 * steps, hft.Implicit("cg", iterations=3, tolerance=1e-2))


META_LEARNERS: Mapping[str, MetaLearner] = {
    "maml": MetaLearner(everything, through),
    "first-order": MetaLearner(everything, first_order),
    "anil": MetaLearner(head_alone, through),
    "meta-sgd": MetaLearner(everything, through, _with_rates),
    "implicit": MetaLearner(near, _implicit, numbers=(0.3, 1.0, 3.0), called="pull"),
}


def frozen(world: World) -> dict[str, dict]:
    """On the frozen features themselves."""

    def means(cosine: bool, power: float) -> Candidate:
        scale = world.spread.clamp(min=1e-6) ** -power
        settings = f"{'cosine' if cosine else 'Euclidean'}, whitening {power:g}"
        return Candidate(settings, lambda both, _: nearest_mean(both, scale, cosine), (0,))

    net = {"head": head(INPUTS, WAYS)}
    return {
        "mean": outcome([means(cosine, power) for cosine in (True, False) for power in WHITENING], world),
        "linear": outcome(_logistics({"net": net}, world, 0.0), world),
    }


def _logistics(learned: Learned, world: World, seconds: float) -> list[Candidate]:
    return [
        trained(f"L2 {l2:.2g}", logistic(learned["net"], world.inputs, l2), learned, (FIT_STEPS,), seconds)
        for l2 in L2S
    ]


def pretrained(world: World) -> dict[str, dict]:
    """From a network that has learned all classes of meta-training at once."""
    begin, inner_steps = time.process_time(), world.config.inner_steps
    net = network(INPUTS, WIDTH, len(world.parts["train"]), world.seed)
    learned = pretrain(net, world)
    learned = {"net": {**learned["net"], "head": head(WIDTH, WAYS)}}
    seconds = time.process_time() - begin
    tuned = [
        trained(f"lr {lr:g}", everything(lr), learned, step_counts(inner_steps), seconds)
        for lr in (0.3 * rate for rate in RATES)
    ]
    return {
        "pretrained-linear": outcome(_logistics(learned, world, seconds), world),
        "pretrained": outcome(tuned, world, marks(inner_steps)),
    }


def meta_learned(name: str, world: World) -> dict[str, dict]:
    """Meta-trained once for each number; MAML's best is also where the long adaptations start."""
    method, inner_steps = META_LEARNERS[name], world.config.inner_steps
    candidates, made, diverged = [], {}, []
    for number in method.numbers:
        adapt, settings = method.adapt(number), f"{method.called} {number:g}"
        begin = time.process_time()
        try:
            start = method.learned(network(INPUTS, WIDTH, WAYS, world.seed), number)
            learned = meta_train(method.outer(adapt, inner_steps), start, world)
        except (ArithmeticError, ValueError):  # the implicit derivative's system was not positive, or a rate became NaN
            learned = None
        if learned is None or not all(bool(p.isfinite().all()) for p in tree.leaves(learned)):
            diverged.append(settings)
            continue
        made[settings] = learned, number
        seconds = time.process_time() - begin
        candidates.append(trained(settings, adapt, learned, step_counts(inner_steps), seconds))
    if not candidates:
        made_of_it = ("maml-plain", "maml-ftp") if name == "maml" else ()
        return {method: {"diverged": diverged} for method in (name, *made_of_it)}
    found: dict[str, dict[str, Any]] = {name: outcome(candidates, world) | {"diverged": diverged}}
    if name == "maml":
        learned, rate = made[found[name]["chosen"].split(",")[0]]
        found |= long_adaptations(learned, rate, found[name]["training_seconds"], world)
    return found


def long_adaptations(learned: Learned, rate: float, seconds: float, world: World) -> dict[str, dict]:
    """More steps than MAML was trained for, from its weights: with weight decay, or within FTP's radii of them."""
    rates = [rate * factor for factor in (math.sqrt(10), 1.0, math.sqrt(0.1))]
    longest = step_counts(world.config.inner_steps)[-1:]

    def chosen_of(called: str, numbers: tuple[float, ...], make: Callable[[float, float], Adaptation]) -> Any:
        candidates = [
            trained(f"lr {lr:.2g}, {called} {number:g}", make(lr, number), learned, longest, seconds)
            for lr in rates
            for number in numbers
        ]
        return outcome(candidates, world, marks(world.config.inner_steps))

    return {
        "maml-plain": chosen_of("weight decay", DECAYS, everything),
        "maml-ftp": chosen_of("radius lr", RADIUS_LRS, anchored),
    }
