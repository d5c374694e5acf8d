"""Every method through all tasks, one after the other: the run and the command."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from experiments.classification.emoji import PACKAGES
from experiments.classification.task import ClassificationTask
from experiments.common.cli import Command
from experiments.common.options import digest
from experiments.common.progress import Progress
from experiments.common.rates import best
from experiments.common.record import RunRecord
from experiments.common.step_log import Board
from experiments.common.trainer import OnStep, Trainer
from experiments.continual.config import Config
from experiments.continual.report import show, summarise, write_report
from experiments.continual.sequence import Learner, name_of
from experiments.continual.stages import make_stages


def about(stages: Sequence[ClassificationTask]) -> dict:
    """What of the pictures goes into the record."""
    first = stages[0].pictures
    return {
        "classes": list(first["test"].classes),
        "items": {part: len(set(some.items)) for part, some in first.items()},
    }


def learn_all(learner: Learner, record: RunRecord) -> None:
    """Do what is left of a run."""
    options, rates = learner.options, record.content.setdefault("rates", {})
    left = [(method, seed) for seed in options.seeds for method in options.methods]
    left = [(method, seed) for method, seed in left if name_of(method, seed) not in record.results]
    to_do = sum(learner.steps_left(method, seed) for method, seed in left)
    to_do += sum(learner.steps_to_choose(rates.setdefault(method, {})) for method in options.methods)
    learner.trainer.show_whole(to_do)
    record.save()  # before the first checkpoint: what lies in the folder is this run's
    for method in options.methods:
        while learner.choose_lr(method, rates[method]) is not None:
            record.save()
    for method, seed in left:
        lr = best(rates[method]) or options.lr
        record.results[name_of(method, seed)] = learner.run(method, seed, lr, on_task=record.save)
        record.save()


def run(
    config: Config,
    out: Path,
    cache: Path,
    console: Console,
    tensorboard: bool,
    on_step: OnStep | None,
) -> None:
    """Do what is left of a run, then show its table."""
    record = RunRecord(out, "continual", config.as_dict())
    if not record.finished:
        with Progress(console) as progress, Board(out / "tensorboard" if tensorboard else None) as board:
            stages = make_stages(config, cache, progress)
            record.check_data(digest({"stages": [stage.fingerprint() for stage in stages]}))
            record.note_environment(PACKAGES)
            learn_all(Learner(Trainer(stages[0], progress, board, on_step), config, stages, out), record)
        record.content["data"] |= about(stages)
        record.content["summary"] = summarise(record.content)
        write_report(record)
        record.content["status"] = "finished"
        record.save()
    show(record, console)


STUDY = Command(
    "experiments.continual",
    "Learn the emoji in one style after the other and test in all of them after each: how much of the earlier styles "
    "does each method forget, and should FTP's anchor move on with the tasks? Stop it at any time; the same command "
    "goes on from there.",
    Config,
    run,
    write_report,
)

main = STUDY.main
