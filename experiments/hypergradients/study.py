"""`python -m experiments.hypergradients`: the study and its command."""

from functools import partial
from statistics import median

from experiments.classification.emoji import PACKAGES
from experiments.common.study import Session, Study, work_off
from experiments.hypergradients.config import WAYS, Config
from experiments.hypergradients.gradients import check_in_float64, compared
from experiments.hypergradients.problems import Problems
from experiments.hypergradients.report import EQUAL_TIME, agreement_table, named, write_report
from experiments.hypergradients.training import fine_tuned


def work(config: Config, data: Problems, session: Session) -> None:
    """Gradients at every stage, fine-tunings of equal steps, and then those of equal time."""
    check_in_float64()
    results = session.record.results

    def tuned(task: str, seed: int, way: str, steps: int) -> dict:
        return fine_tuned(data.of(task, seed), config, way, seed, steps, data.progress)

    for task in config.tasks:
        pieces = {
            named(task, seed, way): partial(tuned, task, seed, way, config.steps)
            for seed in config.seeds
            for way in config.ways
        }
        pieces |= {
            named(task, seed, f"stage {stage}"): partial(
                lambda task, seed, stage: compared(data.of(task, seed), config, seed, stage), task, seed, stage
            )
            for stage in config.stages
            for seed in config.seeds[: config.compared_seeds]
        }
        work_off(f"hypergradients, {task}", pieces, session)

        def seconds(way: str, task: str = task) -> float:
            return median(results[named(task, seed, way)]["seconds"] for seed in config.seeds)

        timed = {}
        for way in (way for way in config.ways if WAYS[way].slow):
            steps = int(config.steps * seconds("paper") / seconds(way))
            steps -= steps % (WAYS[way].depth or 1)
            if 2 * (WAYS[way].depth or 1) <= steps < config.steps:
                timed |= {
                    named(task, seed, way, EQUAL_TIME): partial(tuned, task, seed, way, steps) for seed in config.seeds
                }
        work_off(f"hypergradients, {task}, {EQUAL_TIME}", timed, session)


STUDY = Study(
    name="hypergradients",
    prog="experiments.hypergradients",
    about="Compare FTP's one-step derivatives in the radii with full ones through K steps, of a training and of a "
    "validation loss; then fine-tune with each of them, and with cheap forms. Stop it at any time; the same command "
    "goes on from there.",
    config=Config,
    fast=Config(
        tasks=("imagenet",), depths=(1, 2), stages=(4, 8), seeds=(0,), steps=8, items=200,
        ways=("adamw", "paper", "paper_all", "every1", "every4", "validation4"),
    ),
    load=Problems,
    work=work,
    report=write_report,
    table=agreement_table,
    packages=PACKAGES,
    grow=("tasks", "stages", "ways"),
)  # fmt: skip
main = STUDY.main
