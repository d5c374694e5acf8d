"""`python -m experiments.sensitivity.free`: optimizers that are said to need no learning rate, on the tasks of
`experiments.sensitivity`, as their packages come; alone, and within FTP's radii."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from experiments.common.errors import InputError
from experiments.common.methods import FOLLOWS, METHODS, title
from experiments.common.record import RunRecord
from experiments.common.report_kit import Table, bullets, write
from experiments.common.study import Study
from experiments.sensitivity.study import about
from experiments.sensitivity.summary import scores_of
from experiments.sensitivity.task import Config as Rates
from experiments.sensitivity.task import Splits

ALONE = ("prodigy", "dadapt", "ldog", "ldog_mean", "schedule_free")
#: What their packages call lr by default. Prodigy and D-Adapted Adam then fall to 0 as a cosine, as they advise.
DEFAULTS = {"schedule_free": 0.0025}
ONE_BY_ONE = "for each of the splits"


@dataclass(frozen=True)
class Config(Rates):
    """Each once from every split."""

    methods: tuple[str, ...] = (*ALONE, *(f"ftp_{name}" for name in ALONE))
    seeds: tuple[int, ...] = (0, 1, 2)
    within: tuple[int, ...] = ()  # splits in which they are run within FTP's radii, too

    def check(self) -> None:
        known = Config.__dataclass_fields__["methods"].default
        if not self.methods or not {*self.methods} <= {*known}:
            raise InputError(f"--methods {' '.join(self.methods)}: give any of {', '.join(known)}")
        if self.lrs != Rates.lrs or self.wider:
            raise InputError("--lrs, --wider: each optimizer has its own default here")
        if not {*self.within} <= {*self.seeds}:
            raise InputError(f"--within {' '.join(map(str, self.within))}: give some of --seeds")
        self.check_data()


def pieces(config: Config, data: Splits) -> Mapping[str, Callable[[], dict]]:
    """One training each; all that are alone come first."""

    def scored(seed: int, method: str) -> dict:
        lr, begin = DEFAULTS.get(method.removeprefix("ftp_"), 1.0), time.perf_counter()
        answers = data.answers(seed, method, lr)
        return {"lr": lr, "seed": seed, "answers": answers, "seconds": round(time.perf_counter() - begin, 1)}

    return {
        f"split {seed}, {method}": partial(scored, seed, method)
        for seeds, around in ((config.seeds, False), (config.within, True))
        for seed in seeds
        for method in config.methods
        if method.startswith("ftp_") == around and method not in FOLLOWS
    }


def table(content: dict) -> Table:
    """Scores by split, ID / OOD, and the seconds of a training."""
    results, scores = content["results"].values(), scores_of(content)
    rows = []
    for name, of_rate in scores.items():
        ((lr, splits),) = of_rate.items()
        seconds = [f"{one['seconds']:.0f}" for one in results if name in one["answers"]]
        cells = [f"{split['id']:.1f} / {split['ood']:.1f}" for split in splits]
        rows.append([title(name), f"{lr:g}", *cells, *[""] * (len(content["config"]["seeds"]) - len(cells))])
        rows[-1].append(", ".join(seconds))
    return ["", "lr", *(f"split {seed}" for seed in content["config"]["seeds"]), "seconds"], rows


def write_report(record: RunRecord) -> None:
    content = record.content
    scores = scores_of(content)
    content["summary"] = {name: next(iter(of_rate.values())) for name, of_rate in scores.items()}
    write(
        record,
        "Without a learning rate",
        f"{about(content, ONE_BY_ONE)} Each optimizer is as its package comes, without weight decay. Other work ran on "
        "the machine, so the seconds are not those of a quiet one.",
        bullets(f"{title(name)}: {METHODS[name].about}" for name in scores),
        "Scores, ID / OOD:",
        table(content),
    )


STUDY = Study(
    name="free",
    prog="experiments.sensitivity.free",
    about="Fine-tune by optimizers without a learning rate on the tasks and splits of experiments.sensitivity.",
    config=Config,
    fast=Config(anchor="imagenet", seeds=(0,), epochs=2),
    load=Splits,
    pieces=pieces,
    report=write_report,
    table=table,
    packages=("prodigyopt", "dadaptation", "dog-optimizer", "schedulefree"),
    grow=("methods", "seeds", "within"),
)
main = STUDY.main
