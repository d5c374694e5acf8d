"""The pieces of the study: for each task and seed all pictures, and a few of each kind."""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial

from torch import Tensor

from experiments.common.draws import generator
from experiments.common.examples import Examples
from experiments.meta.distillation.baselines import k_means, random_pictures
from experiments.meta.distillation.config import Config
from experiments.meta.distillation.data import Data, Task
from experiments.meta.distillation.distil import distil
from experiments.meta.distillation.sheets import packed
from experiments.meta.distillation.training import Balanced, Learner, labelled

BASELINES = ("random", "nearest", "centroid")
LONGER = 3  # times as many steps as were differentiated through


def whole_name(data: str, seed: int) -> str:
    return f"{data}-all-seed{seed}"


def few_name(data: str, per_class: int, kind: str, seed: int) -> str:
    return f"{data}-{per_class}-{kind}-seed{seed}"


def pieces(config: Config, data: Data) -> dict[str, Callable[[], dict]]:
    made: dict[str, Callable[[], dict]] = {}
    task_of = lru_cache(maxsize=1)(data.task)
    for name in config.data:
        for seed in config.seeds:
            made[whole_name(name, seed)] = lambda n=name, s=seed: whole(config, task_of(n, s), n, s)
            for count in config.per_class:
                for kind in (*BASELINES, "distilled"):
                    work = partial(few, config, kind, count, name, seed)
                    made[few_name(name, count, kind, seed)] = lambda w=work, n=name, s=seed: w(task_of(n, s))
    return made


def whole(config: Config, task: Task, name: str, seed: int) -> dict:
    """What all training pictures teach."""
    found = {}
    for network in (config.network, config.other_network):
        batches = Balanced(task.train, config.whole_batch, config.whole_steps[-1], name, seed, "all")
        found[network] = _scored(config, Learner(task, network), batches, config.whole_steps, name, seed)
    return {"scores": found}


def few(config: Config, kind: str, per_class: int, name: str, seed: int, task: Task) -> dict:
    """What a few pictures of one kind teach; the pictures too, of the first seed."""
    own, other = Learner(task, config.network), Learner(task, config.other_network)
    made: dict = {}
    if kind == "distilled":
        start = _baseline("centroid" if config.start == "k-means" else "random", task, per_class, name, seed)
        found = distil(own, start, config, name, seed)
        pictures = found.pictures
        batches = [labelled(pictures, len(task.classes))] * (LONGER * config.steps)
        scores = {
            network: own.tested(batches, found.lr, steps, config.test_inits, task.test, name, seed)
            for network, steps in ((config.network, config.steps), ("longer", LONGER * config.steps))
        }
        made = {
            "lr": found.lr,
            "round": found.round,
            "seconds": found.seconds,
            "rounds": found.rounds,
            "validation": found.validation,
            "test": found.test,
        }
        made["scores"] = {where: {"test": score} for where, score in scores.items()}
        learners = [other]
    else:
        pictures = _baseline(kind, task, per_class, name, seed)
        made["scores"], learners = {}, [own, other]
    batches = [labelled(pictures, len(task.classes))] * config.few_steps[-1]
    for learner in learners:
        made["scores"][learner.network] = _scored(config, learner, batches, config.few_steps, name, seed)
    if seed == config.seeds[0]:
        made["png"] = packed(pictures, len(task.classes))
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
    choice = learner.chosen(batches, config.lrs, stops, config.choice_inits, name, seed)
    test = learner.tested(batches, choice.lr, choice.steps, config.test_inits, learner.task.test, name, seed)
    return {**choice._asdict(), "test": test}
