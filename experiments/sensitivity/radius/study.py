"""`python -m experiments.sensitivity.radius`: FTP by the rate of its radii, or others, on that study's splits."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from experiments.common.errors import InputError
from experiments.common.estimate import estimate
from experiments.common.methods import METHODS
from experiments.common.record import RunRecord
from experiments.common.report_kit import Table, write
from experiments.common.study import Study
from experiments.sensitivity.study import about
from experiments.sensitivity.summary import mean_of, row_title, scores_of
from experiments.sensitivity.task import Config as Rates
from experiments.sensitivity.task import Splits

HEADINGS = {
    "ftp_radius": "FTP by the rate of its radii",
    "lp_ft": "LP-FT by its learning rate",
    "adamw_head": "AdamW with a faster head, by the learning rate",
}


@dataclass(frozen=True)
class Config(Rates):
    """One method at every learning rate, FTP with every rate of its radii, from every split."""

    methods: tuple[str, ...] = ("ftp_radius",)  # or another of HEADINGS
    lrs: tuple[float, ...] = (6e-4, 2e-3)
    radius_lrs: tuple[float, ...] = (0.03, 0.1, 0.3)  # 0.01 is in the other study
    seeds: tuple[int, ...] = (0, 1, 2)

    def check(self) -> None:
        for name, values in (("lrs", self.lrs), ("radius-lrs", self.radius_lrs)):
            if not values or len(set(values)) < len(values) or min(values) <= 0:
                raise InputError(f"--{name} {' '.join(map(str, values))}: give rates above 0, all different")
        if self.methods not in [(name,) for name in HEADINGS]:
            raise InputError(f"--methods {' '.join(self.methods)}: this study is of one of {', '.join(HEADINGS)}")
        self.check_data()


def pieces(config: Config, data: Splits) -> Mapping[str, Callable[[], dict]]:
    """One training each."""

    (method,) = config.methods
    of_radii = {f"radius_lr {rate:g}": rate for rate in config.radius_lrs}

    def scored(seed: int, lr: float, radius_lr: float | None) -> dict:
        return {"lr": lr, "seed": seed, "answers": data.answers(seed, method, lr, radius_lr)}

    return {
        f"split {seed}, {name}, lr {lr:g}": partial(scored, seed, lr, radius_lr)
        for seed in config.seeds
        for lr in config.lrs
        for name, radius_lr in (of_radii if METHODS[method].strengths else {method: None}).items()
    }


def table(content: dict) -> Table:
    """Means over splits, ID / OOD, by both rates."""
    scores = scores_of(content)
    lrs = sorted({lr for of_rate in scores.values() for lr in of_rate})
    rows = [
        [
            row_title(name),
            *(" / ".join(f"{mean_of(scores, name, lr, which):.1f}" for which in ("id", "ood")) for lr in lrs),
        ]
        for name in scores
    ]
    return ["", *(f"lr {lr:g}" for lr in lrs)], rows


def write_report(record: RunRecord) -> None:
    content = record.content
    content["summary"] = {
        name: {
            f"{lr:g}": {which: estimate([s[which] for s in splits])[0] for which in ("id", "ood")}
            for lr, splits in of_rate.items()
        }
        for name, of_rate in scores_of(content).items()
    }
    (method,) = content["config"]["methods"]
    write(record, HEADINGS[method], about(content), "Means over splits, ID / OOD:", table(content))


STUDY = Study(
    name="radius",
    prog="experiments.sensitivity.radius",
    about="Fine-tune by FTPAdamW at several rates of its radii, or by others, on the splits of the other study.",
    config=Config,
    fast=Config(anchor="imagenet", lrs=(2e-3,), radius_lrs=(0.1,), seeds=(0,), epochs=2),
    load=Splits,
    pieces=pieces,
    report=write_report,
    table=table,
    grow=("lrs", "radius_lrs"),
)
main = STUDY.main
