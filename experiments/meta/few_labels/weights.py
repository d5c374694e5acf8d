"""What the recipe thinks of each example of the source, in the end."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.common.task import Network
from experiments.meta.few_labels.data import Problem

QUANTILES, ENDS = 21, 10


def described(problem: Problem, model: Network, learned: Mapping[str, Tensor]) -> dict:
    """For the record."""
    of_examples = about(problem, weights_of(problem, model, learned))
    return {name: rounded(value) for name, value in learned.items()} | {"examples": of_examples}


@torch.no_grad()
def weights_of(problem: Problem, model: Network, learned: Mapping[str, Tensor]) -> Tensor:
    """Of each example of the source [N], over the mean: by its group, and its loss under the trained weights."""
    losses = F.cross_entropy(*problem.source_outputs(model), reduction="none")
    return problem.source * (learned["group"][problem.groups] - learned["loss"] * losses).softmax(0)


def about(problem: Problem, weights: Tensor) -> dict:
    """Quantiles of the weights of each kind of example; where labels are wrong, the share of pairs in which the right
    one has the higher weight; and where examples may be shown, those with the lowest and the highest weights."""
    right = problem.right
    if right is None:
        domain = torch.tensor([problem.domains.index(name.partition(":")[0]) for name in problem.names])
        kinds = {name: weights[domain[problem.groups] == k] for k, name in enumerate(problem.domains)}
    else:
        kinds = {"right label": weights[right], "wrong label": weights[~right]}
    levels = torch.linspace(0, 1, QUANTILES)
    found: dict = {"quantiles": {name: rounded(own.quantile(levels)) for name, own in kinds.items()}}
    if right is not None:
        found["pairs"] = round((weights[right, None] > weights[~right]).float().mean().item(), 3)
    if right is not None and (shown := problem.shown) is not None:
        of_class = [name.partition(": ")[2] for name in problem.names]

        def said(i: int) -> str:
            return f"{shown[i]} {of_class[problem.groups[i]]}{'' if right[i] else ', wrong'}"

        order = weights.argsort().tolist()
        found["ends"] = [list(map(said, some)) for some in (order[:ENDS], order[::-1][:ENDS])]
    return found


def rounded(values: Tensor) -> list[float]:
    return [round(value, 3) for value in values.flatten().tolist()]
