"""The study: for each seed and style everything is chosen, then fine-tuned once more and tested."""

from collections.abc import Callable

import hyperopt_ftp as hft
from experiments.classification.emoji import PACKAGES
from experiments.common.study import Study
from experiments.tuning.knobs.config import WISE, Config, Knobs
from experiments.tuning.knobs.report import main_table, write_report
from experiments.tuning.knobs.styles import Styles, load
from experiments.tuning.knobs.tuning import (
    PLAIN,
    SOURCES,
    Trainee,
    Tuner,
    Weights,
    best_point,
    best_rate,
    best_round,
    draws,
    finite,
    of_source,
    rounded,
    with_knobs,
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
    search = tuner.search(draws(config, seed))
    ends, found = Ends(tuner), {}
    for source in SOURCES:
        way, tests, held_out = tuner.bilevel(source), {}, {}
        for method in PLAIN:
            losses = rates[method]["losses"]
            lr = best_rate(losses, source)
            held_out[method] = finite(of_source(losses[str(lr)], source))
            tests |= ends.rows(method, method, {"lr": lr})
        number = best_point(search["losses"], source)
        held_out["random"] = finite(of_source(search["losses"][number], source))
        tests |= ends.rows("random", None, Knobs(*search["points"][number])._asdict())
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
        "searches": {"random": search},
        "sources": found,
    }


class Ends:
    """Where fine-tunings end; those with equal numbers are one."""

    def __init__(self, tuner: Tuner) -> None:
        self._tuner = tuner
        self._known: dict[tuple, Weights] = {}

    def weights(self, plain: str | None, numbers: dict[str, float]) -> Weights:
        """After a fine-tuning with one of PLAIN, or with knobs."""
        key, tuner = (plain, *numbers.values()), self._tuner
        if key not in self._known:
            if plain is None:
                optimizer = with_knobs(tuner.config.steps, tuner.anchor, Knobs(**numbers))
            else:
                optimizer = PLAIN[plain](tuner.config.steps, numbers["lr"], tuner.anchor)
            self._known[key] = tuner.trainee.trained(optimizer, tuner.anchor, tuner.batches(tested=True))
        return self._known[key]

    def rows(self, method: str, plain: str | None, numbers: dict[str, float]) -> dict[str, dict]:
        """Scores of a method, and of its mean with the anchor where that is asked for."""
        tuner, weights = self._tuner, self.weights(plain, numbers)
        found = {method: numbers | {"scores": scores(tuner, weights)}}
        if method in MIXED:
            found[f"wise_{method}"] = numbers | {"scores": scores(tuner, hft.wise(weights, tuner.anchor, WISE))}
        return found


def scores(tuner: Tuner, weights: Weights) -> dict[str, list[float | None]]:
    """Accuracy and cross-entropy by role."""
    found = {role: tuner.trainee.score(weights, rows) for role, rows in tuner.parts.test.items()}
    return {role: [rounded(score.accuracy), finite(score.loss)] for role, score in found.items()}


STUDY = Study(
    name="knobs",
    prog="experiments.tuning.knobs",
    about="Tune FTP's radius_lr and kappa by hypergradients on held-out pictures of a style that is not fine-tuned on; "
    "compare with its defaults, with searches, and with AdamW, also in a third style. Stop it at any time; the same "
    "command goes on from there.",
    config=Config,
    fast=Config(seeds=(0,), styles=(0,), lrs=(3e-4, 1e-3, 3e-3), tries=12, rounds=5),
    load=load,
    pieces=pieces,
    report=write_report,
    table=main_table,
    packages=PACKAGES,
)
main = STUDY.main
