"""The methods, and one sequence of tasks learned by one of them."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW, Optimizer

import hyperopt_ftp as hft
from experiments.common.examples import generator
from experiments.common.trainer import schedule_of
from experiments.continual.data import Data

if TYPE_CHECKING:
    from experiments.continual.study import Config

Weights = Mapping[str, Tensor]


class Reader(nn.Module):
    """Last layers whose keys and values alone move, a mean over the tokens, and a head that is zero at first."""

    def __init__(self, layers: nn.ModuleList, width: int, classes: int) -> None:
        super().__init__()
        self.layers = copy.deepcopy(layers)
        self.head = nn.Linear(width, classes)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)
        for name, parameter in self.layers.named_parameters():
            parameter.requires_grad_(".key." in name or ".value." in name)

    def body(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.named_parameters() if p.requires_grad and not name.startswith("head.")}

    def forward(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        there = tokens != 0
        for layer in self.layers:
            hidden = layer(hidden, there[:, None, None, :])
        weights = there.unsqueeze(-1).to(hidden.dtype)
        return self.head((hidden * weights).sum(1) / weights.sum(1))


Make = Callable[[list, float, Weights], Optimizer]  # of groups of parameters, a strength, and the weights before tasks


@dataclass(frozen=True)
class Method:
    """`optimizer` is called anew for each task."""

    title: str
    about: str
    optimizer: Make = lambda groups, strength, first: AdamW(groups, weight_decay=0.0, fused=True)
    rate: float = 0.0  # of keys and values, in the middle of those that are tried first; 0: they stay
    strength: float = 0.0  # the same; 0: the method has none
    remembers: bool = False  # EWC's penalty, times its strength


def _l2sp(groups: list, strength: float, first: Weights) -> Optimizer:
    return hft.L2SP(AdamW(groups, weight_decay=0.0), strength=strength, anchor=first, exclude="head.*")


METHODS: Mapping[str, Method] = {
    "linear": Method("linear probe", "the head alone moves"),
    "adamw": Method("AdamW", "keys and values move freely", rate=1e-3),
    "ftp_kept": Method(
        "FTPAdamW, anchor kept",
        "a radius around the weights before all tasks",
        lambda groups, strength, first: hft.FTPAdamW(groups, anchor=first, exclude="head.*"),
        rate=3e-3,
    ),
    "ftp_moved": Method(
        "FTPAdamW, anchor moved",
        "a radius around the weights after the last task",
        lambda groups, strength, first: hft.FTPAdamW(groups, exclude="head.*"),
        rate=3e-3,
    ),
    "l2sp": Method("L2-SP", "AdamW, pulled to the weights before all tasks", _l2sp, rate=1e-3, strength=1e-2),
    "ewc": Method("EWC", "AdamW, pulled to the weights after each task", rate=1e-3, strength=1e2, remembers=True),
}


class Ewc:
    """Kirkpatrick et al., arXiv 1612.00796, eq. 3: half of the sum over tasks and weights of F (w - w*)^2. F is the
    diagonal of Fisher's matrix: the mean squared gradient of log-likelihoods of labels that the network draws."""

    def __init__(self) -> None:
        self.past: list[dict[str, tuple[Tensor, Tensor]]] = []  # F and w* of each task

    def penalty(self, body: Mapping[str, Tensor]) -> Tensor:
        parts = [(f * (body[k] - w).square()).sum() / 2 for task in self.past for k, (f, w) in task.items()]
        return torch.stack(parts).sum() if parts else torch.zeros(())

    def remember(self, body: Mapping[str, Tensor], logits: Tensor, drawn: torch.Generator) -> None:
        fisher = {name: torch.zeros_like(p) for name, p in body.items()}
        for row in logits.log_softmax(1):
            label = int(torch.multinomial(row.detach().exp(), 1, generator=drawn))
            for f, g in zip(fisher.values(), torch.autograd.grad(row[label], [*body.values()], retain_graph=True), strict=True):
                f += g.square() / len(logits)
        self.past.append({name: (f, body[name].detach().clone()) for name, f in fisher.items()})


def sequence(
    data: Data, config: "Config", name: str, seed: int, chooses: bool, head: float, rate: float, strength: float
) -> dict:
    """`matrix[i][j]`: percent right in the test of task j, of all classes seen, after task i."""
    method, drawn, ewc = METHODS[name], generator("sequence", seed), Ewc()
    model = Reader(data.layers, data.hidden.shape[-1], len(data.tokens)).eval()
    body = model.body()
    if not rate:
        model.layers.requires_grad_(False)
    first = {name: p.detach().clone() for name, p in body.items()}
    train, test = data.rows(seed, config.train, config.test, chooses)
    tasks = torch.randperm(len(data.tokens), generator=drawn)[: config.tasks * config.per_task].split(config.per_task)

    def logits(classes: Tensor, texts: Tensor, among: Tensor) -> Tensor:
        return model(data.hidden[classes, texts], data.tokens[classes, texts])[:, among]

    matrix = []
    for number, own in enumerate(tasks):
        label = torch.arange(len(own)).repeat_interleave(config.train)
        texts, moving = train[own].flatten(), [{"params": [*body.items()], "lr": rate}] if rate else []
        optimizer = method.optimizer(
            [*moving, {"params": [("head." + k, p) for k, p in model.head.named_parameters()], "lr": head}],
            strength,
            first,
        )
        steps = config.epochs * -(-len(label) // config.batch_size)
        schedule = schedule_of(optimizer, steps, 0)
        for _ in range(config.epochs):
            for batch in torch.randperm(len(label), generator=drawn).split(config.batch_size):
                loss = cross_entropy(logits(own[label[batch]], texts[batch], own), label[batch])
                if method.remembers:
                    loss = loss + strength * ewc.penalty(body)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        if method.remembers:
            some = torch.randperm(len(label), generator=drawn)[: config.batch_size]
            ewc.remember(body, logits(own[label[some]], texts[some], own), drawn)
        seen, scores = torch.cat(tasks[: number + 1]), []
        with torch.no_grad():
            for other in tasks[: number + 1]:
                classes = other.repeat_interleave(config.test)
                answers = seen[logits(classes, test[other].flatten(), seen).argmax(1)]
                scores.append(100 * float((answers == classes).double().mean()))
        matrix.append(scores)
    return {"method": name, "seed": seed, "head": head, "rate": rate, "strength": strength, "matrix": matrix}
