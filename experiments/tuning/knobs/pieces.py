"""The work of the study: for each seed and style everything is chosen, then fine-tuned once more and tested."""

from collections.abc import Callable

import hyperopt_ftp as hft
from experiments.tuning.knobs.config import Config
from experiments.tuning.knobs.optimizers import PLAIN, Knobs, with_knobs
from experiments.tuning.knobs.styles import Styles
from experiments.tuning.knobs.tail import Trainee, Weights
from experiments.tuning.knobs.tuning import (
    SOURCES,
    Tuner,
    best_point,
    best_rate,
    best_round,
    draws,
    finite,
    grid,
    of_source,
    rounded,
)

#: Whose mean with the anchor is tested too.
MIXED = ("adamw", "ftp", "bilevel")


def pieces(config: Config, data: Styles) -> dict[str, Callable[[], dict]]:
    trainee = Trainee(data.features)
    return {
        f"style{style}-seed{seed}": lambda style=style, seed=seed: work(config, data, trainee, style, seed)
        for seed in config.seeds
        for style in config.styles
    }


def work(config: Config, data: Styles, trainee: Trainee, style: int, seed: int) -> dict:
    """Choices by source, and the scores of what was chosen, by source and method."""
    parts = data.parts(config, seed, style)
    anchor = trainee.anchor(config, parts.pretrain, seed)
    tuner = Tuner(config, trainee, parts, anchor, seed)
    rates = {method: tuner.rates(method) for method in PLAIN}
    searches = {"random": tuner.search(draws(config, seed)), "grid": tuner.search(grid(config))}
    ends, found = Ends(tuner), {}
    for source in SOURCES:
        way, tests, held_out = tuner.bilevel(source), {}, {}
        for method in PLAIN:
            losses = rates[method]["losses"]
            lr = best_rate(losses, source)
            held_out[method] = finite(of_source(losses[str(lr)], source))
            tests |= ends.rows(method, method, {"lr": lr})
        for method, search in searches.items():
            number = best_point(search["losses"], source)
            held_out[method] = finite(of_source(search["losses"][number], source))
            tests |= ends.rows(method, None, Knobs(*search["points"][number])._asdict())
        number = best_round(way["values"])
        held_out["bilevel"] = way["values"][number]
        tests |= ends.rows("bilevel", None, Knobs(*way["way"][number])._asdict())
        found[source] = {"bilevel": way, "held_out": held_out, "tests": tests}
    return {
        "style": style,
        "seed": seed,
        "items": {"train": len(parts.train), "held_out": len(parts.held_out["own"]), "test": len(parts.test["own"])},
        "anchor": scores(tuner, anchor),
        "rates": rates,
        "searches": searches,
        "sources": found,
    }


class Ends:
    """Where fine-tunings end; those with equal numbers are one."""

    def __init__(self, tuner: Tuner) -> None:
        self._tuner = tuner
        self._known: dict[tuple, Weights] = {}

    def weights(self, plain: str | None, numbers: dict[str, float]) -> Weights:
        """After a fine-tuning with one of PLAIN, or with knobs."""
        key = (plain, *numbers.values())
        if key not in self._known:
            tuner = self._tuner
            if plain is None:
                optimizer = with_knobs(tuner.config, tuner.anchor, Knobs(**numbers))
            else:
                optimizer = PLAIN[plain](tuner.config, numbers["lr"], tuner.anchor)
            self._known[key] = tuner.trainee.trained(optimizer, tuner.anchor, tuner.batches(tested=True))
        return self._known[key]

    def rows(self, method: str, plain: str | None, numbers: dict[str, float]) -> dict[str, dict]:
        """Scores of a method, and of its mean with the anchor where that is asked for."""
        tuner, weights = self._tuner, self.weights(plain, numbers)
        found = {method: numbers | {"scores": scores(tuner, weights)}}
        if method in MIXED:
            mixed = hft.wise(weights, tuner.anchor, tuner.config.wise)
            found[f"wise_{method}"] = numbers | {"scores": scores(tuner, mixed)}
        return found


def scores(tuner: Tuner, weights: Weights) -> dict[str, list[float | None]]:
    """Accuracy and cross-entropy by role."""
    found = {role: tuner.trainee.score(weights, rows) for role, rows in tuner.parts.test.items()}
    return {role: [rounded(score.accuracy), finite(score.loss)] for role, score in found.items()}
