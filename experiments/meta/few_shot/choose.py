"""Settings are chosen on meta-validation episodes, and what was chosen is tested once."""

import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from experiments.meta.few_shot.adaptation import Adaptation, Learned, accuracies
from experiments.meta.few_shot.config import Config
from experiments.meta.few_shot.data import World
from experiments.meta.few_shot.episodes import Both, pairs


class Candidate(NamedTuple):
    """One or several settings of a method: those that differ in the number of steps share a training."""

    settings: str
    accuracies: Callable[[Both, Sequence[int]], Tensor]  # after so many steps: [episode, number of steps]
    steps: tuple[int, ...]
    seconds: float = 0.0  # of meta-training or pre-training


def trained(settings: str, adapt: Adaptation, learned: Learned, steps: tuple[int, ...], seconds: float) -> Candidate:
    return Candidate(settings, lambda both, marks: accuracies(adapt, learned, both, marks), steps, seconds)


def outcome(
    candidates: Sequence[Candidate], world: World, config: Config, shots: int, marks: Sequence[int] = ()
) -> dict:
    """Of the best setting on validation: accuracy on the test, in all, by pair of styles, and after `marks` steps."""
    validation = world.episodes("validation", config.validation, shots, config.queries).batches(world.inputs)
    tried: dict[str, float] = {}
    best, score = (candidates[0], candidates[0].steps[0]), -math.inf
    for candidate in candidates:
        found = candidate.accuracies(validation, candidate.steps).mean(dim=0).tolist()
        for steps, share in zip(candidate.steps, found, strict=True):
            tried[_settings(candidate, steps)] = round(100 * share, 2)
            if share > score:
                best, score = (candidate, steps), share
    candidate, steps = best
    episodes = world.episodes("test", config.episodes, shots, config.queries)
    test = episodes.batches(world.inputs)
    start = time.process_time()
    shares = 100 * candidate.accuracies(test, (steps,))[:, 0]
    seconds = time.process_time() - start
    result = {
        "accuracy": shares.mean().item(),
        "pairs": [shares[episodes.pair == pair].mean().item() for pair in range(len(pairs(world.styles)))],
        "chosen": _settings(candidate, steps),
        "tried": tried,
        "training_seconds": candidate.seconds,
        "adaptation_ms": 1000 * seconds / config.episodes,
    }
    if marks:
        result["curve"] = (100 * candidate.accuracies(test, marks).mean(dim=0)).tolist()
    return result


def _settings(candidate: Candidate, steps: int) -> str:
    return f"{candidate.settings}, {steps} steps" if len(candidate.steps) > 1 else candidate.settings
