"""The paper's benchmarks, for data sets and pre-trained weights that are on this machine: options, run and report."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from experiments.common.errors import InputError
from experiments.common.options import digest
from experiments.common.progress import Progress
from experiments.common.record import RunRecord
from experiments.common.report_kit import Table, write
from experiments.common.study import Session, Study
from experiments.common.task import summed_up
from experiments.common.trainer import Trainer
from experiments.recipes.domainnet import domainnet
from experiments.recipes.examples import Benchmark
from experiments.recipes.imagenet import imagenet
from experiments.recipes.model import build
from experiments.recipes.paper import RECIPES, Recipe
from experiments.recipes.train import METHODS, Recognise, run

DATA: Mapping[str, Callable[[Path, Recipe], Benchmark]] = {"domainnet": domainnet, "imagenet": imagenet}


@dataclass(frozen=True)
class Config:
    """What is given on the command line."""

    name: tyro.conf.Positional[str] = ""  # the recipe
    root: str | None = None  # folder of the data set
    checkpoint: str | None = None  # pre-trained weights: a state_dict, or .safetensors
    head: str | None = None  # zero-shot classifier, for the recipe of ImageNet: a tensor
    # Every weight within a learned radius of the anchor (ftp), free (finetune), only the head (linear).
    methods: Annotated[tuple[Literal["ftp", "finetune", "linear"], ...], tyro.conf.arg(name="method")] = (
        "ftp",
        "finetune",
        "linear",
    )
    seed: int = 0  # of head, order and augmentation
    epochs: int | None = None  # instead of the recipe's
    batch_size: int | None = None  # instead of the recipe's
    workers: int = 4  # processes that read pictures
    device: str = "cpu"  # cpu, cuda, mps, or auto, which is cuda where there is one

    @property
    def seeds(self) -> tuple[int, ...]:
        return (self.seed,)

    def recipe(self) -> Recipe:
        given = {name: getattr(self, name) for name in ("epochs", "batch_size")}
        return RECIPES[self.name].changed(**{name: value for name, value in given.items() if value is not None})

    def check(self) -> None:
        """Refuse what cannot run, before any work starts."""
        if self.name not in RECIPES:
            raise InputError(f"recipe '{self.name}': choose from {', '.join(RECIPES)}")
        recipe = self.recipe()
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise InputError(f"--method {' '.join(self.methods)}: give any of {', '.join(METHODS)}, each once")
        for option, value, least in (
            ("--epochs", recipe.epochs, 1),
            ("--batch-size", recipe.batch_size, 1),
            ("--workers", self.workers, 0),
        ):
            if value < least:
                raise InputError(f"{option} {value}: must be an integer of at least {least}")
        if self.root is None or not Path(self.root).is_dir():
            raise InputError(f"--root {self.root} is not a folder; give the one that holds the data set of {self.name}")
        if (self.head is not None) != recipe.zero_shot:
            needed = "is needed: it starts from" if recipe.zero_shot else "is not for it: only imagenet-clip-vit has"
            raise InputError(f"{self.name}: --head {needed} CLIP's zero-shot classifier")
        for option, file in (("--checkpoint", self.checkpoint), ("--head", self.head)):
            if (option == "--checkpoint" or file is not None) and not Path(file or "").is_file():
                raise InputError(f"{option} {file} is not a file; nothing is downloaded, so give the weights")


@dataclass(frozen=True)
class Found:
    """What a run works on."""

    recipe: Recipe
    benchmark: Benchmark
    weights: dict[str, str]  # file and digest by option

    def fingerprint(self) -> str:
        return digest({"pictures": self.benchmark.fingerprint(), "recipe": asdict(self.recipe), **self.weights})

    def about(self) -> dict:
        held_out = self.benchmark.validation
        counts = {"train": len(self.benchmark.train.files), "validation": len(held_out.files) if held_out else 0}
        return {"pictures": counts, "recipe": asdict(self.recipe), "weights": self.weights}


def load(config: Config, cache: Path, progress: Progress) -> Found:
    recipe, weights = config.recipe(), {}
    for option, name in (("checkpoint", config.checkpoint), ("head", config.head)):
        if name is not None:
            file = Path(name)
            weights[option] = f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()[:16]}"
    return Found(recipe, DATA[recipe.data](Path(config.root or ""), recipe), weights)


def work(config: Config, found: Found, session: Session) -> None:
    recipe, record = found.recipe, session.record
    for method in config.methods:
        if method in record.results:
            continue
        torch.manual_seed(config.seed)  # of the head
        head = None if config.head is None else Path(config.head)
        model = build(recipe, Path(config.checkpoint or ""), head).to(config.device)
        trainer = Trainer(Recognise(), session.progress, session.on_step)
        identity = {"method": method, "seed": config.seed, "data": found.fingerprint()}
        file = record.folder / "checkpoint.pt"
        done = run(model, recipe, found.benchmark, method, config.seed, config.workers, trainer, file, identity)
        record.results[method] = done | {"columns": summed_up(found.benchmark.columns, done["scores"])}
        record.save()


def table(content: dict) -> Table:
    """A row for each method."""
    results = content["results"]
    columns = list(next(iter(results.values()))["columns"])
    rows = [
        [
            method + (" (diverged)" if one["diverged"] else ""),
            *(f"{one['columns'][name]:.1f}" for name in columns),
            f"{one['seconds']:.0f}",
        ]
        for method, one in results.items()
    ]
    return ["method", *columns, "seconds"], rows


def lines(content: dict) -> list[str]:
    data, recipe = content["data"], content["data"]["recipe"]
    held_out = f", {data['pictures']['validation']:,} to choose the epoch by" if data["pictures"]["validation"] else ""
    return [
        f"Accuracy in %, one seed ({content['config']['seed']}); weights from {data['weights']['checkpoint']}.",
        f"{data['pictures']['train']:,} pictures to train on{held_out}.",
        f"Recipe {recipe['name']}: {recipe['source']}.",
        f"Stated by no source that was read, so chosen here: {', '.join(recipe['chosen'])}.",
    ]


def write_report(record: RunRecord) -> None:
    content = record.content
    write(record, content["data"]["recipe"]["title"], *lines(content), table(content))


STUDY = Study(
    name="recipes",
    prog="experiments.recipes",
    about=(
        f"The benchmarks of the FTP paper: {', '.join(RECIPES)}. Nothing is downloaded. Stop it at any time; the same "
        "command goes on from the last finished epoch."
    ),
    config=Config,
    load=load,
    work=work,
    report=write_report,
    table=table,
    lines=lines,
    packages=("timm", "torchvision", "pillow"),
    threads=None,
)
main = STUDY.main
