"""One run: the data are found and checked, every method trains and is tested, a report is written."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console

from experiments.common.errors import InputError
from experiments.common.progress import Progress
from experiments.common.record import RunRecord
from experiments.recipes.benchmark import find
from experiments.recipes.examples import Benchmark, named
from experiments.recipes.meters import ACCURACY
from experiments.recipes.methods import METHODS
from experiments.recipes.model import build
from experiments.recipes.pictures import steps_of
from experiments.recipes.recipe import Recipe
from experiments.recipes.report import show, write_report
from experiments.recipes.train import Training

PACKAGES = ("timm", "torchvision", "torchmetrics", "numpy", "pillow")


@dataclass(frozen=True)
class Setting:
    """What is given on the command line."""

    root: Path
    checkpoint: Path
    out: Path
    head: Path | None = None  # of the zero-shot classifier
    methods: tuple[str, ...] = tuple(METHODS)
    seed: int = 0
    device: str = "cpu"
    workers: int = 4  # changes no number

    def check(self, recipe: Recipe) -> None:
        if not self.methods or len(set(self.methods)) < len(self.methods) or not set(self.methods) <= METHODS.keys():
            raise InputError(f"--method {' '.join(self.methods)}: give any of {', '.join(METHODS)}, each once")
        if not 0 <= self.seed < 2**31:
            raise InputError(f"--seed {self.seed}: must be an integer from 0 to {2**31 - 1}")
        if self.workers < 0:
            raise InputError(f"--workers {self.workers}: must be an integer of at least 0")
        if not self.checkpoint.is_file():
            raise InputError(f"--checkpoint {self.checkpoint} is not a file; give the pre-trained weights")
        if self.head is None and recipe.zero_shot:
            raise InputError(f"--head is needed: {recipe.name} starts from CLIP's zero-shot classifier")
        if self.head is not None and not recipe.zero_shot:
            raise InputError(f"--head {self.head}: {recipe.name} has a new head; leave the option out")
        if self.head is not None and not self.head.is_file():
            raise InputError(f"--head {self.head} is not a file; give the zero-shot classifier")


def _digest(file: Path) -> str:
    with open(file, "rb") as opened:
        digest = hashlib.sha256()
        while block := opened.read(2**20):
            digest.update(block)
    return digest.hexdigest()[:16]


def errors_of(benchmark: Benchmark, scores: dict[str, float]) -> dict[str, dict[str, float]]:
    """What is measured besides the metric, with the columns of its table."""
    return {
        error: {
            title: sum(scores[named(name, error)] for name in names) / len(names)
            for title, names in benchmark.columns.items()
        }
        for error in benchmark.errors
    }


def summed_up(benchmark: Benchmark, scores: list[dict[str, float]]) -> dict[str, float]:
    """A value of the metric for each column of the table."""
    last = scores[-1]
    columns = {title: sum(last[name] for name in names) / len(names) for title, names in benchmark.columns.items()}
    if len(scores) > 1:  # tasks 1 ... N
        columns["mean after each task"] = sum(after["all so far"] for after in scores) / len(scores)
        lost = [scores[task][f"task {task + 1}"] - last[f"task {task + 1}"] for task in range(len(scores) - 1)]
        columns["forgetting"] = sum(lost) / len(lost)
    return columns


def check_batches(benchmark: Benchmark, recipe: Recipe) -> None:
    for number, stage in enumerate(benchmark.stages, 1):
        if steps_of(stage.examples, recipe) == 0:
            count = len(stage.examples.files)
            raise InputError(
                f"--batch-size {recipe.batch_size}: task {number} has {count} pictures, and a batch that is not "
                f"full is dropped; give at most {count}"
            )


def run(recipe: Recipe, setting: Setting, console: Console) -> None:
    """Do what is left of a run, then show its table."""
    recipe.check()
    setting.check(recipe)
    plain = json.loads(json.dumps(asdict(recipe)))  # lists for tuples, as JSON gives them back
    config = {**plain, "methods": list(setting.methods), "seed": setting.seed, "device": setting.device}
    for name, file in (("checkpoint", setting.checkpoint), ("head", setting.head)):
        config[name] = None if file is None else f"{file.name} {_digest(file)}"
    record = RunRecord(setting.out, "recipes", config)
    if not record.finished:
        benchmark = find(setting.root, recipe, setting.seed)
        check_batches(benchmark, recipe)
        record.check_data(benchmark.fingerprint())
        record.note_environment(PACKAGES)
        record.content["metric"] = benchmark.metric
        record.content["pictures"] = benchmark.counts()
        record.save()  # before the first checkpoint: what lies in the folder is this run's
        with Progress(console) as bars:
            for method in setting.methods:
                if method not in record.results:
                    record.results[method] = _train(recipe, setting, benchmark, method, config, bars)
                    record.save()
        write_report(record)
        record.content["status"] = "finished"
        record.save()
    show(record, console)


def _train(recipe: Recipe, setting: Setting, benchmark: Benchmark, method: str, config: dict, bars: Progress) -> dict:
    torch.manual_seed(setting.seed)  # of the head
    dense = benchmark.metric != ACCURACY
    model = build(recipe, setting.checkpoint, dense, setting.head).to(setting.device)
    identity = {"method": method, "config": config}
    file = setting.out / "checkpoint.pt"
    training = Training(recipe, model, method, setting.seed, setting.workers, file, identity)
    measured = training.run(benchmark, bars)
    return {
        "columns": summed_up(benchmark, measured["scores"]),
        "errors": errors_of(benchmark, measured["scores"][-1]),
        "scores": measured["scores"] if recipe.tasks > 1 else measured["scores"][0],
        "losses": measured["losses"],
        "validation": measured["validation"],
        "diverged": None in measured["losses"],
        "seconds": round(measured["seconds"], 1),
    }
