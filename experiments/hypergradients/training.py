"""Fine-tunings that differ in what moves the radii alone."""

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import hyperopt_ftp as hft
from experiments.common.bilevel_loop import Batches, Losses, Radii, cosine, fit_radii
from experiments.common.memory import peak_above
from experiments.common.progress import Progress
from experiments.common.task import Network, tested
from experiments.hypergradients.config import RADIUS_LR, WAYS, Config, Way
from experiments.hypergradients.problems import Problem
from hyperopt_ftp.anchored import radius_gradient, row_norm
from hyperopt_ftp.anchored.projections import FLOOR, clip_radius, rescaled

CPU = torch.device("cpu")


def base_of(config: Config, steps: int) -> hft.Optimizer:
    return hft.scheduled(hft.adamw(lr=config.lr, weight_decay=0.0), lr=cosine(steps))


def fine_tuned(problem: Problem, config: Config, way: str, seed: int, steps: int, progress: Progress) -> dict:
    """Scores of the network, and seconds of the processor and MiB that its training took."""
    work, begin = full if WAYS[way].depth else one_step, time.process_time()
    model, mib = peak_above(CPU, lambda: work(problem, config, WAYS[way], seed, steps, progress))
    cost = {"steps": steps, "seconds": round(time.process_time() - begin, 2), "mib": round(mib)}
    return cost | tested(problem.task, model)


def full(problem: Problem, config: Config, way: Way, seed: int, steps: int, progress: Progress) -> Network:
    """Radii by derivatives through `way.depth` steps, second derivatives of the training loss included."""
    (model, params, anchor), parts = problem.begin(), problem.task.parts
    with TemporaryDirectory() as folder:
        fit_radii(
            model, problem.task, Radii(way.depth, free_steps=0, radius_lr=way.depth * RADIUS_LR),
            free=[name for name in params if name not in anchor], train=parts[way.labels], outer=parts[way.part],
            lr=config.lr, weight_decay=0.0, steps=steps, batch_size=config.batch_size, seed=seed,
            file=Path(folder) / "checkpoint.pt", identity={}, save_every=steps, progress=progress,
            description=way.title, on_step=lambda step: None,
        )  # fmt: skip
    return model


def one_step(problem: Problem, config: Config, way: Way, seed: int, steps: int, _: Progress) -> Network:
    """AdamW, FTP, or radii by FTP's closed form with the gradient of a validation batch. This is taken after the first
    step, and then once in `way.every`; in between radii are held, so that a move is as many times larger."""
    (model, params, anchor), parts = problem.begin(), problem.task.parts
    losses, base = Losses(model, problem.task), base_of(config, steps)
    batches = Batches(parts[way.labels], config.batch_size, steps, seed, CPU)
    held_out = Batches(parts[way.part], config.batch_size, steps, seed + 1, CPU)
    optimizer = hft.ftp(base, anchor, gradient=way.gradient) if way.gradient else base
    by, radius = hft.adam(lr=way.every * RADIUS_LR), {name: w0.new_tensor(FLOOR) for name, w0 in anchor.items()}
    state, moments = optimizer.init(params), by.init(radius)
    for step in range(steps):
        grads = torch.func.grad(losses.train)(params, batches[step])
        params, state = optimizer.update(grads, state, params)
        if way.every:
            c = {name: params[name] - w0 for name, w0 in anchor.items()}
            n = {name: row_norm(deviation) for name, deviation in c.items()}
            params |= {name: rescaled(w0, c[name], radius[name], n[name]) for name, w0 in anchor.items()}
            if step % way.every == 0:
                g = torch.func.grad(losses.held_out)(params, held_out[step // way.every])
                slopes = {name: radius_gradient(g[name], c[name], n[name], radius[name], "exact") for name in anchor}
                radius, moments = by.update(slopes, moments, radius)
                radius = {name: clip_radius(moved.clamp(min=FLOOR), n[name]) for name, moved in radius.items()}
    model.load_state_dict(params, strict=False)  # buffers are not trained
    return model
