"""One run of the study: a fine-tuning with FTP, gradients compared on its way, then fine-tunings with each of them."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch
from torch import Tensor

import hyperopt_ftp as hft
from experiments.common.anchor import make_anchor
from experiments.common.bilevel_loop import Batches, Losses, cosine, fit_radii
from experiments.common.errors import InputError
from experiments.common.loop import Fit, fit, write_steps
from experiments.common.methods import free_parameters, held
from experiments.common.options import AnchorOptions
from experiments.common.progress import Progress
from experiments.common.record import RunRecord
from experiments.common.study import Session, Study
from experiments.common.task import Task, tested
from experiments.common.trainer import Trainer, steps_of
from experiments.hypergradients.config import WAYS, Plan
from experiments.hypergradients.gradients import compare, walk
from experiments.hypergradients.report import EQUAL_TIME, Subject, compared, write_report

RUN = "run"  # the fine-tuning on whose way gradients are compared

C = TypeVar("C", bound=AnchorOptions)


@dataclass(frozen=True)
class Setting:
    """What all parts of the study share."""

    config: AnchorOptions  # and a Plan
    task: Task  # without dropout
    trainer: Trainer
    record: RunRecord
    start: dict[str, Tensor]

    @property
    def plan(self) -> Plan:
        return plan_of(self.config)

    @property
    def steps(self) -> int:
        return steps_of(self.task.parts["train"], self.config.epochs, self.config.batch_size)

    @property
    def way_steps(self) -> int:
        return steps_of(self.task.parts["train"], self.plan.ways_epochs, self.config.batch_size)


def plan_of(config: AnchorOptions) -> Plan:
    """The same options, which are those of both."""
    assert isinstance(config, Plan)
    return config


def check_schedules(config: AnchorOptions, task: Task) -> None:
    """Refuse what does not fit into the schedules, before any work starts."""
    plan = plan_of(config)
    last, deepest = plan.points[-1], plan.depths[-1]
    steps, way_steps = (
        steps_of(task.parts["train"], epochs, config.batch_size) for epochs in (config.epochs, plan.ways_epochs)
    )
    if steps < last + deepest:
        points = " ".join(map(str, plan.points))
        raise InputError(
            f"--points {points}: {deepest} steps are made from step {last} on, but the run has {steps} "
            f"(--epochs {config.epochs})"
        )
    # The first move of the radii serves the steps after it.
    needed = 2 * max((WAYS[way].depth for way in plan.ways), default=0)
    if way_steps < needed:
        raise InputError(f"--ways-epochs {plan.ways_epochs}: {way_steps} steps, but --ways need {needed}")


def compare_on_the_way(setting: Setting) -> None:
    """Fine-tune with the pure FTP, and stop at each point. Made again on a resume: it is the same run."""
    config, plan, task, results = setting.config, setting.plan, setting.task, setting.record.results
    longest, device = plan.depths[-1], torch.device(config.device)
    batches = Batches(task.parts["train"], config.batch_size, setting.steps + longest + 1, config.seeds[0], device)
    held_out = Batches(task.parts["validation"], config.batch_size, len(plan.points), config.seeds[0] + 1, device)
    model = task.new_model()
    model.load_state_dict(setting.start)
    losses = Losses(model, task)
    params = {name: p.detach().clone() for name, p in model.named_parameters()}
    anchor = {name: p.clone() for name, p in held(model, config, params).items()}
    base = hft.scheduled(hft.adamw(lr=config.lr, weight_decay=config.weight_decay), lr=cosine(setting.steps))
    optimizer = hft.ftp(base, anchor)
    state, log = optimizer.init(params), []
    with setting.trainer.progress.task("FTP, comparing", setting.steps) as bar:
        for step in range(1, setting.steps + 1):
            begin = time.perf_counter()
            grads, loss = torch.func.grad_and_value(losses.train)(params, batches[step - 1])
            if not loss.isfinite():
                raise InputError(f"the run diverged at step {step}; give a smaller --lr than {config.lr:g}")
            params, state = optimizer.update(grads, state, params)
            lr = config.lr * cosine(setting.steps)(torch.tensor(step - 1)).item()
            log.append((step, loss.item(), math.nan, lr, time.perf_counter() - begin))
            bar.advance(note=f"loss {loss.item():.3f}")
            if step in plan.points and f"point-{step}" not in results:
                number = plan.points.index(step)
                outer = {
                    "training": lambda p, b=batches[step + longest]: losses.train(p, b),
                    "validation": lambda p, b=held_out[number]: losses.held_out(p, b),
                }
                ahead = [batches[k] for k in range(step, step + longest)]
                segment = walk(base, anchor, state.radius, params, state.base, losses, ahead, outer, plan.depths)
                results[f"point-{step}"] = {"step": step, **vars(compare(segment, losses, plan.depths))}
                setting.record.save()
            setting.trainer.on_step(RUN, step)
    model.load_state_dict(params, strict=False)
    write_steps(setting.record.folder / "steps" / f"{RUN}.csv", log)
    results[RUN] = tested(task, model)
    setting.record.save()


def fine_tune(setting: Setting, way: str, seed: int, steps: int, name: str) -> dict:
    """With one of the ways, for a number of steps."""
    config, plan, task, trainer = setting.config, setting.plan, setting.task, setting.trainer
    model, kind = task.new_model(), WAYS[way]
    model.load_state_dict(setting.start)
    identity = {"training": name, "steps": steps, "config": config.as_dict()}
    file, part = setting.record.folder / "checkpoint.pt", task.parts["train"]
    layers = held(model, config, dict(model.named_parameters()))
    free = [n for n, _ in model.named_parameters() if n not in layers]
    if kind.gradient is not None:
        optimizer = hft.FTPAdamW(
            model.named_parameters(), lr=config.lr, weight_decay=config.weight_decay, gradient=kind.gradient,
            exclude=free_parameters(model, config),
        )  # fmt: skip
        trained = trainer.train(
            name, model, optimizer, part,
            epochs=plan.ways_epochs, batch_size=config.batch_size, seed=seed, file=file, identity=identity,
        )  # fmt: skip
    else:
        done = [0]

        def count(more: int) -> None:
            done[0] += more
            trainer.on_step(name, done[0])

        trained = fit_radii(
            model, task, kind.radii(),
            free=free, train=part, outer=task.parts["validation" if kind.on_validation else "train"],
            lr=config.lr, weight_decay=config.weight_decay, steps=steps, batch_size=config.batch_size, seed=seed,
            file=file, identity=identity, save_every=math.ceil(16 / kind.depth), progress=trainer.progress,
            description=name, on_step=count,
        )  # fmt: skip
    write_steps(setting.record.folder / "steps" / f"{name}.csv", trained.log)
    return {
        "way": way,
        "seed": seed,
        "steps": trained.step,
        "seconds": round(trained.seconds, 2),
        "diverged": trained.diverged,
        **tested(task, model),
    }


def compare_downstream(setting: Setting) -> None:
    """Every way for equally many steps; the slow ones also for as many as fit into FTP's time, equal over the seeds."""
    config, plan, results = setting.config, setting.plan, setting.record.results

    def fill(name: str, way: str, seed: int, steps: int) -> None:
        if name not in results:
            results[name] = fine_tune(setting, way, seed, steps, name)
            setting.record.save()

    for seed in config.seeds:
        for way in plan.ways:
            fill(f"{way}-seed{seed}", way, seed, setting.way_steps)
    if "paper" not in plan.ways:
        return
    for way in plan.ways:
        budget = within_time(way, setting)
        if WAYS[way].gradient is None and budget >= 2 * WAYS[way].depth:  # the first move serves the steps after it
            for seed in config.seeds:
                fill(f"{way}-seed{seed}-{EQUAL_TIME}", way, seed, budget)


def within_time(way: str, setting: Setting) -> int:
    """Steps, in whole moves of the radii, that a way makes in the seconds of FTP; medians over the seeds."""
    results, seeds = setting.record.results, setting.config.seeds
    own = [results[f"{way}-seed{seed}"] for seed in seeds]
    if any(result["diverged"] for result in own):
        return 0
    step = median(result["seconds"] / result["steps"] for result in own)
    steps = int(median(results[f"paper-seed{seed}"]["seconds"] for seed in seeds) / step)
    return steps - steps % WAYS[way].depth


@dataclass(frozen=True)
class Tasks:
    """On the same examples."""

    anchor: Task  # with the dropout of the anchor's training
    compared: Task  # without

    def fingerprint(self) -> str:
        return self.compared.fingerprint()


def gradient_study(
    name: str,
    prog: str,
    what: str,
    config: type[C],
    make_tasks: Callable[[C, Path, Progress], Tasks],
    facts: Callable[[Any], dict[str, Any]],  # of a task
    packages: tuple[str, ...],
    subject: Subject,
    anchor_fit: Fit = fit,
) -> Study[C, Tasks]:
    """The study of a task; `what` is fine-tuned, and `anchor_fit` is the training loop of the anchor."""

    def load(config: C, cache: Path, progress: Progress) -> Tasks:
        tasks = make_tasks(config, cache, progress)
        check_schedules(config, tasks.compared)
        return tasks

    def work(config: C, tasks: Tasks, session: Session) -> None:
        record = session.record
        start, record.content["anchor"] = make_anchor(
            Trainer(tasks.anchor, session.progress, session.on_step, anchor_fit), config, session.cache
        )
        record.save()
        trainer = Trainer(tasks.compared, session.progress, session.on_step)
        setting = Setting(config, tasks.compared, trainer, record, start)
        if RUN not in record.results:
            compare_on_the_way(setting)
        compare_downstream(setting)

    return Study(
        name=name,
        prog=prog,
        about=f"Compare FTP's one-step radius gradients with full ones through K steps, on the way of {what}; then "
        "fine-tune with each of them. Stop it at any time; the same command goes on from there.",
        config=config,
        load=load,
        facts=lambda tasks: facts(tasks.compared),
        work=work,
        report=lambda record: write_report(record, subject),
        table=compared,
        packages=packages,
        threads=None,
    )
