"""The study: for each task and seed all pictures, and a few of each kind."""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import torch
from einops import rearrange
from torch import Tensor

from experiments.classification.emoji import PACKAGES
from experiments.common.examples import Examples, generator
from experiments.common.report_kit import packed
from experiments.common.study import Study
from experiments.meta.distillation.config import OTHER, OWN, WHOLE_BATCH, Config
from experiments.meta.distillation.data import Data, Task, k_means, load, random_pictures
from experiments.meta.distillation.distil import distil
from experiments.meta.distillation.report import KINDS, LONGER, few_name, table, whole_name, write_report
from experiments.meta.distillation.training import Balanced, Learner, labelled


def pieces(config: Config, data: Data) -> dict[str, Callable[[], dict]]:
    made: dict[str, Callable[[], dict]] = {}
    task_of = lru_cache(maxsize=1)(data.task)
    for name in config.data:
        for seed in config.seeds:
            made[whole_name(name, seed)] = lambda n=name, s=seed: whole(config, task_of(n, s), n, s)
            for count in config.per_class:
                for kind in KINDS:
                    work = partial(few, config, kind, count, name, seed)
                    made[few_name(name, count, kind, seed)] = lambda w=work, n=name, s=seed: w(task_of(n, s))
    return made


def whole(config: Config, task: Task, name: str, seed: int) -> dict:
    """What all training pictures teach."""
    batches = Balanced(task.train, WHOLE_BATCH, config.whole_steps[-1], name, seed, "all")
    learners = [Learner(task, network) for network in (OWN, OTHER)]
    return {"scores": {x.network: _scored(config, x, batches, config.whole_steps, name, seed) for x in learners}}


def few(config: Config, kind: str, per_class: int, name: str, seed: int, task: Task) -> dict:
    """What a few pictures of one kind teach; the pictures too, of the first seed."""
    own, other = Learner(task, OWN), Learner(task, OTHER)
    classes, made, scores = len(task.classes), {}, {}
    if kind == "distilled":
        found = distil(own, k_means(task, per_class, seed)[0], config, name, seed)
        pictures, learners = found.pictures, [other]
        batches = [labelled(pictures, classes)] * (LONGER * config.steps)
        for where, steps in ((OWN, config.steps), ("longer", LONGER * config.steps)):
            scores[where] = {"test": own.tested(batches, found.lr, steps, name, seed)}
        made = {key: value for key, value in found._asdict().items() if key != "pictures"}
    else:
        pictures, learners = _baseline(kind, task, per_class, name, seed), [own, other]
    batches = [labelled(pictures, classes)] * config.few_steps[-1]
    for learner in learners:
        scores[learner.network] = _scored(config, learner, batches, config.few_steps, name, seed)
    made["scores"] = scores
    if seed == config.seeds[0]:
        made["png"] = sheet(pictures, classes)
    return made


def _baseline(kind: str, task: Task, per_class: int, name: str, seed: int) -> Tensor:
    if kind == "random":
        return random_pictures(task, per_class, generator(name, seed, "random"))
    centroids, nearest = k_means(task, per_class, seed)
    return centroids if kind == "centroid" else nearest


def _scored(
    config: Config, learner: Learner, batches: Sequence[Examples], stops: Sequence[int], name: str, seed: int
) -> dict:
    """Test accuracy at the rate and number of steps that are best on validation pictures."""
    choice = learner.chosen(batches, config.lrs, stops, name, seed)
    return {**choice._asdict(), "test": learner.tested(batches, choice.lr, choice.steps, name, seed)}


def sheet(pictures: Tensor, classes: int) -> str:
    """A row for each class, as many columns as pictures a class; 8 bits a value, and nothing else is lost."""
    table = rearrange(pictures, "(label n) c h w -> (label h) (n w) c", label=classes)
    values = (255 * table).round().to(torch.uint8).numpy()
    return packed(values[..., 0] if values.shape[-1] == 1 else values)


STUDY = Study[Config, Data](
    name="distillation",
    prog="experiments.meta.distillation",
    about="Learn one or ten pictures a class so that a new network, trained on them alone, does well on real ones; "
    "compare with as many random, k-means and nearest-to-centroid pictures, and with the whole training set.",
    config=Config,
    fast=Config(data=("digits",), per_class=(1,), seeds=(0,), rounds=100, whole_steps=(20, 60, 200)),
    load=lambda config, cache, progress: load(config.data, cache, progress),
    pieces=pieces,
    report=write_report,
    table=table,
    packages=("scikit-learn", *PACKAGES),
)
main = STUDY.main
