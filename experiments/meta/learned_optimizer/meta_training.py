"""Meta-training: hft.bilevel tunes the rule's weights while they train networks, one group of tasks after another."""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import hyperopt_ftp as hft
from experiments.common.examples import Examples
from experiments.common.small_networks import Batch, Params, cross_entropy, stretches
from experiments.meta.learned_optimizer.config import HIDDEN, META_LR, SEGMENT, Config
from experiments.meta.learned_optimizer.rule import Net, first_net, learned, over_tasks
from experiments.meta.learned_optimizer.tasks import BATCH, Group, new_group
from hyperopt_ftp.hyper import BilevelState, Strategy

OUTER_BATCH = 128
HELD_OUT = 2**31  # seeds of tasks from here on are not those of a meta-training
SMALL = 1e-3  # added to a loss before its logarithm: nothing is gained by a loss far below it


class MetaTrained(NamedTuple):
    net: Net  # the best one of the checks
    checks: list[tuple[int, float, float]]  # episodes done, the meta-loss on held-out tasks, seconds spent
    steps: int  # of training, in all
    skipped: int  # moves of the rule that were left out, since a number was not finite
    seconds: float  # without those of the checks


def total_loss(group: Group) -> Callable[[Params, Batch], Tensor]:
    """The sum over the tasks, so that each has the gradient of its own loss."""
    loss = torch.func.vmap(cross_entropy(group.forward))
    return lambda params, batch: loss(params, batch).sum()


def log_loss(group: Group) -> Callable[[Params, Batch], Tensor]:
    """The mean over the tasks of log(loss): the meta-loss."""
    loss = torch.func.vmap(cross_entropy(group.forward))
    return lambda params, batch: (loss(params, batch) + SMALL).log().mean()


def length_at(episode: int, config: Config, generator: torch.Generator) -> int:
    """Segments of an episode: log-uniform, up to a number that grows over the first half of the meta-training."""
    grown = min(1.0, 2 * episode / config.episodes)
    longest = SEGMENT * (config.longest / SEGMENT) ** grown
    length = SEGMENT * (longest / SEGMENT) ** torch.rand((), generator=generator).item()
    return max(1, round(length / SEGMENT))


def meta_train(config: Config, digits: Examples, seed: int, strategy: Strategy) -> MetaTrained:
    """Each episode trains a new group of tasks from its start; the rule moves after every segment of its steps.

    A meta-gradient goes through one segment, from the meta-loss at its end back to its beginning. Since segments lie
    anywhere in an episode, their meta-losses together stand for the mean over the way.
    """
    generator = torch.Generator().manual_seed(seed)
    lengths = [length_at(episode, config, generator) for episode in range(config.episodes)]
    rate = hft.schedules.cosine(sum(lengths), floor=0.1)
    by = hft.clipped(hft.scheduled(hft.adam(lr=META_LR), lr=rate), max_norm=1.0)
    net, begin, aside = first_net(HIDDEN, seed), time.process_time(), 0.0
    outer: Any = by.init({"net": net})
    held_out = held_out_groups(config, digits)
    best, checks, skipped = (math.inf, net), [], 0
    for episode in range(config.episodes + 1):
        if episode * config.checks // config.episodes > (episode - 1) * config.checks // config.episodes:
            before = time.process_time()
            score = meta_loss(learned(net), held_out, config.longest)
            checks.append((episode, score, before - begin - aside))
            best = min(best, (score, net), key=lambda found: found[0])
            aside += time.process_time() - before
        if episode == config.episodes:
            break
        segments = lengths[episode]
        group, optimizer = new_group(digits, config.tasks, generator), over_tasks(learned(net))
        start = BilevelState(
            torch.tensor(0), group.params, optimizer.init(group.params), {"net": net}, outer
        )  # params and their optimizer begin; the rule and its optimizer go on
        rounds = hft.bilevel(
            optimizer, by, "net", total_loss(group), log_loss(group), group.params,
            group.batches(BATCH, segments * SEGMENT, generator), group.batches(OUTER_BATCH, segments, generator),
            inner_steps=SEGMENT, outer_steps=segments, strategy=strategy, state=start, not_finite="skip",
        )  # fmt: skip
        for record in rounds:
            net, outer, skipped = record.tuned["net"], record.state.outer, skipped + bool(record.skipped)
    steps = sum(lengths) * SEGMENT + len(checks) * len(held_out) * config.longest
    return MetaTrained(best[1], checks, steps, skipped, time.process_time() - begin)


def held_out_groups(config: Config, digits: Examples) -> list[Group]:
    """Tasks like those of meta-training: other subsets, labels and weights, the same for all seeds."""
    return [new_group(digits, config.tasks, torch.Generator().manual_seed(HELD_OUT + k)) for k in range(4)]


@torch.no_grad()
def meta_loss(optimizer: hft.Optimizer, groups: list[Group], steps: int) -> float:
    """Mean over tasks, and over ten points on the way, of the logarithm of the training loss on all examples."""
    found = []
    for number, group in enumerate(groups):
        batches = group.batches(BATCH, steps, torch.Generator().manual_seed(number))
        every = max(1, steps // 10)
        stops = [min(first + every, steps) for first in range(0, steps, every)]
        for _, params in stretches(over_tasks(optimizer), total_loss(group), group.params, batches, stops):
            found.append(log_loss(group)(params, (group.x, group.y)).nan_to_num(10.0, 10.0).clamp(max=10.0))
    return torch.stack(found).mean().item()
