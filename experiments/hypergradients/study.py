"""`python -m experiments.hypergradients`: the study and its command."""

from functools import partial
from statistics import median

from experiments.classification.emoji import PACKAGES
from experiments.common.study import Session, Study, work_off
from experiments.hypergradients.config import WAYS, Config
from experiments.hypergradients.radii import Problems, check_in_float64, compared, fine_tuned
from experiments.hypergradients.report import COMPARED, EQUAL_TIME, agreement_table, named, write_report


def work(config: Config, data: Problems, session: Session) -> None:
    """Of each task fine-tunings of equal steps, derivatives at every stage, and fine-tunings of equal time."""
    check_in_float64()
    for task in config.tasks:
        splits = [(task, seed) for seed in config.seeds]
        pieces = {named(*at, x): partial(fine_tuned, data, *at, x, config.steps) for at in splits for x in config.ways}
        pieces |= {named(*at, f"stage {stage}"): partial(compared, data, *at, stage)
                   for stage in config.stages for at in splits[:COMPARED]}  # fmt: skip
        work_off(f"hypergradients, {task}", pieces, session)
        timed, seconds = (
            {},
            {way: median(session.record.results[named(*at, way)]["seconds"] for at in splits) for way in config.ways},
        )
        slow = {way: WAYS[way].depth or 1 for way in config.ways if WAYS[way].depth or 0 < WAYS[way].every <= 4}
        for way, depth in slow.items():
            steps = int(config.steps * seconds["paper"] / seconds[way]) // depth * depth
            if 2 * depth <= steps < config.steps:
                name = f"{way}, {EQUAL_TIME}"
                timed |= {named(*at, name): partial(fine_tuned, data, *at, way, steps) for at in splits}
        work_off(f"hypergradients, {task}, {EQUAL_TIME}", timed, session)


STUDY = Study(
    name="hypergradients", prog="experiments.hypergradients",
    about="Compare FTP's one-step derivatives in the radii with full ones, and fine-tune with each of them.",
    config=Config, load=Problems, work=work, report=write_report, table=agreement_table, facts=lambda data: {},
    fast=Config(("imagenet",), (1, 2), (4, 8), ("adamw", "paper", "paper_all", "every1"), (0,), 8, items=200),
    packages=PACKAGES, grow=("tasks", "stages", "ways"),
)  # fmt: skip
main = STUDY.main
