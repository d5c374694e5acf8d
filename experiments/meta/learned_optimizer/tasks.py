"""Meta-training tasks: digits with new labels, networks of several widths, depths and sizes of the initial weights."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from experiments.common.examples import Examples
from experiments.common.small_networks import Batch, Params, mlp, mlp_params
from experiments.meta.learned_optimizer.problems import Forward

CLASSES, BATCH = 10, 32
WIDTHS, DEPTHS = (8, 16, 32), (1, 2)  # of the hidden layers
SCALES = (0.5, 2.0)  # of the initial weights, times He's; log-uniform


class Group(NamedTuple):
    """Tasks of one shape, which train at once: all tensors have the tasks in their first dimension."""

    forward: Forward
    params: Params
    x: Tensor  # (tasks, examples, inputs)
    y: Tensor  # (tasks, examples)

    def batches(self, size: int, count: int, generator: torch.Generator) -> list[Batch]:
        """Random examples of each task, with replacement."""
        tasks, examples = self.y.shape
        places = torch.randint(examples, (count, tasks, size), generator=generator)
        rows = torch.arange(tasks)[:, None]
        return [(self.x[rows, place], self.y[rows, place]) for place in places]


def new_group(digits: Examples, tasks: int, generator: torch.Generator) -> Group:
    """Of one width, depth and activation; each task has its own subset of examples, labels and initial weights."""

    def pick(choices: tuple[int, ...]) -> int:
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    x, y = digits
    width, depth = pick(WIDTHS), pick(DEPTHS)
    forward = (mlp, partial(mlp, activation=torch.tanh))[int(torch.randint(2, (), generator=generator))]
    sizes = (x.shape[1], *[width] * depth, CLASSES)
    params, xs, ys = [], [], []
    for _ in range(tasks):
        low, high = SCALES
        scale = low * (high / low) ** torch.rand((), generator=generator).item()
        params.append(mlp_params(sizes, generator, variance=2.0, scale=scale))
        chosen = torch.randperm(len(x), generator=generator)[: len(x) // 2]
        # Not a permutation: digits may share a label, so that there are easy tasks and hard ones.
        labels = torch.randint(CLASSES, (CLASSES,), generator=generator)
        xs.append(x[chosen])
        ys.append(labels[y[chosen]])
    stacked = {name: torch.stack([p[name] for p in params]) for name in params[0]}
    return Group(forward, stacked, torch.stack(xs), torch.stack(ys))
