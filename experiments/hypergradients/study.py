"""`python -m experiments.hypergradients`: the study and its command."""

from functools import partial
from statistics import median

from experiments.classification.emoji import PACKAGES
from experiments.common.study import Session, Study, work_off
from experiments.hypergradients.config import WAYS, Config
from experiments.hypergradients.gradients import check_in_float64, compared
from experiments.hypergradients.problems import Problems
from experiments.hypergradients.report import COMPARED, EQUAL_TIME, agreement_table, named, write_report
from experiments.hypergradients.training import fine_tuned


def work(config: Config, data: Problems, session: Session) -> None:
    """Of each task fine-tunings of equal steps, derivatives at every stage, and fine-tunings of equal time."""
    check_in_float64()

    def tuned(task: str, seed: int, way: str, steps: int) -> dict:
        return fine_tuned(data.of(task, seed), config, way, seed, steps, data.progress)

    for task in config.tasks:
        splits = [(task, seed) for seed in config.seeds]
        pieces = {named(*at, way): partial(tuned, *at, way, config.steps) for at in splits for way in config.ways}
        pieces |= {
            named(*at, f"stage {stage}"): lambda at=at, stage=stage: compared(data.of(*at), config, at[1], stage)
            for stage in config.stages
            for at in splits[:COMPARED]
        }
        work_off(f"hypergradients, {task}", pieces, session)
        timed, results = {}, session.record.results
        seconds = {way: median(results[named(*at, way)]["seconds"] for at in splits) for way in config.ways}
        for way in (way for way in config.ways if WAYS[way].depth or 0 < WAYS[way].every <= 4):
            depth = WAYS[way].depth or 1
            steps = int(config.steps * seconds["paper"] / seconds[way]) // depth * depth
            if 2 * depth <= steps < config.steps:
                timed |= {named(*at, way, EQUAL_TIME): partial(tuned, *at, way, steps) for at in splits}
        work_off(f"hypergradients, {task}, {EQUAL_TIME}", timed, session)


STUDY = Study(
    name="hypergradients",
    prog="experiments.hypergradients",
    about="Compare FTP's one-step derivatives in the radii with full ones through K steps, of a training and of a "
    "validation loss; then fine-tune with each of them, and with cheap forms. Stop it at any time; the same command "
    "goes on from there.",
    config=Config,
    fast=Config(("imagenet",), (1, 2), (4, 8), ("adamw", "paper", "paper_all", "every1", "every4"), (0,), 8, items=200),
    load=Problems,
    work=work,
    report=write_report,
    table=agreement_table,
    packages=PACKAGES,
    grow=("tasks", "stages", "ways"),
)
main = STUDY.main
