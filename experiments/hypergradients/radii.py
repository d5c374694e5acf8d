"""The tasks, derivatives of their losses in every layer's radius, and fine-tunings that differ in which moves it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.nn import Dropout, Dropout2d

import hyperopt_ftp as hft
from experiments.common.anchor import make_anchor
from experiments.common.bilevel_loop import Batch, Batches, Losses, Radii, cosine, fit_radii
from experiments.common.errors import InputError
from experiments.common.memory import costing
from experiments.common.methods import held
from experiments.common.progress import Progress
from experiments.common.small_networks import cross_entropy, mlp, mlp_params
from experiments.common.task import Network, Task, tested
from experiments.common.trainer import Trainer
from experiments.hypergradients.config import RADIUS_LR, TASKS, WAYS, Config
from hyperopt_ftp.anchored import project, radius_gradient, row_norm

CPU = torch.device("cpu")
LEAST = 1e-8  # FTP's smallest radius, in which it begins


@dataclass(frozen=True)
class Problem:
    """One split of a task. There is no dropout: what is trained twice must be the same function twice."""

    task: Task
    start: dict[str, Tensor]
    options: Any

    def begin(self) -> tuple[Network, dict[str, Tensor], dict[str, Tensor]]:
        """A model, its parameters, and those of them that have an anchor: all but a new head."""
        model = self.task.new_model()
        model.load_state_dict(self.start)
        for module in (module for module in model.modules() if isinstance(module, Dropout | Dropout2d)):
            module.p = 0.0
        params = {name: p.detach().clone() for name, p in model.named_parameters()}
        return model, params, {name: p.clone() for name, p in held(model, self.options, params).items()}


class Problems:
    """All splits of all tasks, made when they are asked for."""

    def __init__(self, config: Config, folder: Path, progress: Progress) -> None:
        self.config, self.folder, self.progress = config, folder, progress
        self.of = cache(self._of)

    def fingerprint(self) -> str:
        splits = [(name, seed) for name in self.config.tasks for seed in self.config.seeds]  # more tasks may follow
        return " ".join(self.of(*split).task.fingerprint() for split in splits)

    def _of(self, name: str, seed: int) -> Problem:
        _, module, chosen = TASKS[name]
        chosen = {**chosen, "limit": self.config.items} if "shares" in chosen else chosen
        shared = {"methods": ("tpgm",), "seeds": (seed,), "split_seed": seed}  # for tpgm some examples are held out
        options = import_module(f"experiments.{module}").Config(**shared, **chosen)
        study = import_module(f"experiments.{module.partition('.')[0]}.study")
        task = study.COMPARISON.make_task(options, self.folder, self.progress)
        return Problem(task, make_anchor(Trainer(task, self.progress), options, self.folder)[0], options)


def base_of(config: Config, steps: int) -> hft.Optimizer:
    return hft.scheduled(hft.adamw(lr=config.lr, weight_decay=0.0), lr=cosine(steps))


def measured(
    base: hft.Optimizer, radius: Any, loss: Callable, params: Any, base_state: Any, anchor: dict[str, Tensor],
    batches: Sequence[Batch], depths: Sequence[int], outers: Mapping[str, Callable], tolerance: float,
) -> dict[str, dict[str, dict]]:  # fmt: skip
    """Make the steps with the radii held; at their end, of each outer loss, FTP's closed forms and the derivatives."""
    optimizer, moved = hft.projected(base, anchor, radius=radius), params
    points = [(params, optimizer.init(params)._replace(base=base_state))]
    for batch in batches:
        params, state = points[-1]
        grads = torch.func.grad(loss)(params, batch)
        moved = base.update(grads, state.base, params)[0]
        points.append(optimizer.update(grads, state, params))
    end, radii = points[-1][0], optimizer.hparams["radius"]

    def closed(outer: Callable, form: Any) -> dict[str, Tensor]:
        g, c = torch.func.grad(outer)(end), {name: moved[name] - w0 for name, w0 in anchor.items()}
        return {name: radius_gradient(g[name], c[name], row_norm(c[name]), radii[name], form) for name in anchor}

    def full(outer: Callable, depth: int) -> dict[str, Tensor]:
        first, state = points[-1 - depth]
        return hft.hypergradient(optimizer, loss, outer, first, batches[-depth:], "radius", state=state)[1]["radius"]

    done, own = {}, {}
    for name, outer in outers.items():
        works = {form: partial(closed, outer, form) for form in ("paper", "exact")}
        works |= {f"K={depth}": partial(full, outer, depth) for depth in depths}
        done[name] = {kind: costing(CPU, work) for kind, work in works.items()}
        own[name] = {kind: [slope.item() for slope in slopes.values()] for kind, (slopes, _) in done[name].items()}
        error = math.dist(one := own[name]["K=1"], own[name]["exact"])
        if not error <= tolerance * (size := math.hypot(*one)):
            raise InputError(f"FTP's exact form is {error:.1e} from the derivative of one step, which is {size:.1e}")
    deepest = {name: values[f"K={depths[-1]}"] for name, values in own.items()}
    return {name: {kind: cost | {with_: agreement(own[name][kind], deepest[with_]) for with_ in deepest}
                   for kind, (_, cost) in kinds.items()} for name, kinds in done.items()}  # fmt: skip


def check_in_float64() -> None:
    """FTP's exact form is the derivative of one step, to the last digits, or nothing here is worth a look."""
    drawn = torch.Generator().manual_seed(0)
    anchor = {name: w.double() for name, w in mlp_params((6, 8, 3), drawn).items()}
    data = [(torch.randn(5, 6, generator=drawn).double(), torch.randint(3, (5,), generator=drawn)) for _ in range(6)]
    base, loss = hft.adamw(lr=0.01), cross_entropy(mlp)
    start, outers = (anchor, base.init(anchor), anchor), {"next": lambda p: loss(p, data[5])}
    measured(base, 0.02, loss, *start, data[:5], (1,), outers, 1e-12)


def agreement(h: Sequence[float], reference: Sequence[float]) -> list[float]:
    """Cosine over the layers, share of equal signs, and ratio of the norms."""
    products, own, other = [a * b for a, b in zip(h, reference, strict=True)], math.hypot(*h), math.hypot(*reference)
    same = fmean(product > 0 or a == b for product, a, b in zip(products, h, reference, strict=True))
    return [round(value, 4) for value in (math.fsum(products) / (own * other or 1.0), same, own / (other or 1.0))]


def compared(data: Problems, task: str, seed: int, stage: int) -> dict:
    """After so many steps with FTP, by outer loss and kind: agreement with the deepest derivatives, and cost."""
    problem, config = data.of(task, seed), data.config
    model, params, anchor = problem.begin()
    losses, base, deepest = Losses(model, problem.task), base_of(config, config.steps), config.depths[-1]
    batches, held_out = (Batches(problem.task.parts[part], config.batch_size, stage + 1, seed + k, CPU)
                         for k, part in enumerate(("train", "validation")))  # fmt: skip
    state = (ftp := hft.ftp(base, anchor)).init(params)
    for step in range(stage - deepest):
        params, state = ftp.update(torch.func.grad(losses.train)(params, batches[step]), state, params)
    outers = {"training": lambda p: losses.train(p, batches[stage]),
              "validation": lambda p: losses.held_out(p, held_out[stage])}  # fmt: skip
    ahead, start = [batches[step] for step in range(stage - deepest, stage)], (params, state.base, anchor)
    return measured(base, state.radius, losses.train, *start, ahead, config.depths, outers, 1e-5)


def fine_tuned(data: Problems, task: str, seed: int, way: str, steps: int) -> dict:
    """Scores of the network, and what its training cost."""
    problem = data.of(task, seed)
    model, cost = costing(CPU, lambda: trained(problem, data.config, way, seed, steps, data.progress))
    return {"steps": steps, **cost, **tested(problem.task, model)}


def trained(problem: Problem, config: Config, name: str, seed: int, steps: int, progress: Progress) -> Network:
    """Validation gradients are taken after the first step, and then once in `every`; a move is as much larger."""
    (model, params, anchor), parts, way = problem.begin(), problem.task.parts, WAYS[name]
    if way.depth:
        with TemporaryDirectory() as folder:
            fit_radii(
                model, problem.task, Radii(way.depth, free_steps=0, radius_lr=way.depth * RADIUS_LR),
                free=[each for each in params if each not in anchor], train=parts[way.labels], outer=parts[way.part],
                lr=config.lr, weight_decay=0.0, steps=steps, batch_size=config.batch_size, seed=seed, identity={},
                file=Path(folder, name), save_every=steps, progress=progress, description=name, on_step=lambda _: None,
            )  # fmt: skip
        return model
    losses, base = Losses(model, problem.task), base_of(config, steps)
    batches, held_out = (Batches(parts[part], config.batch_size, steps, seed + k, CPU)
                         for k, part in enumerate((way.labels, way.part)))  # fmt: skip
    optimizer = hft.ftp(base, anchor, gradient=way.gradient) if way.gradient else base
    by, radius = hft.adam(lr=way.every * RADIUS_LR), {name: w0.new_tensor(LEAST) for name, w0 in anchor.items()}
    state, moments = optimizer.init(params), by.init(radius)
    for step in range(steps):
        params, state = optimizer.update(torch.func.grad(losses.train)(params, batches[step]), state, params)
        if way.every:
            c = {name: params[name] - w0 for name, w0 in anchor.items()}
            n = {name: row_norm(deviation) for name, deviation in c.items()}
            params |= {name: project(params[name], w0, radius[name]) for name, w0 in anchor.items()}
            if step % way.every == 0:
                g = torch.func.grad(losses.held_out)(params, held_out[step // way.every])
                slopes = {name: radius_gradient(g[name], c[name], n[name], radius[name], "exact") for name in anchor}
                radius, moments = by.update(slopes, moments, radius)
                radius = {name: moved.clamp(min=LEAST).minimum(n[name].amax()) for name, moved in radius.items()}
    model.load_state_dict(params, strict=False)  # buffers are not trained
    return model
