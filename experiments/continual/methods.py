"""The methods, and one sequence of tasks learned by one of them."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW, Optimizer

import hyperopt_ftp as hft
from experiments.common.examples import generator
from experiments.common.trainer import schedule_of
from experiments.continual.data import Data

Weights = Mapping[str, Tensor]


class Reader(nn.Module):
    """Layers whose keys and values alone move, a mean over the tokens, and a head that is zero at first."""

    def __init__(self, data: Data) -> None:
        super().__init__()
        self.layers, self.head = copy.deepcopy(data.layers), nn.Linear(data.hidden.shape[-1], len(data.tokens))
        self.head.load_state_dict({name: torch.zeros_like(p) for name, p in self.head.named_parameters()})
        self.body = {k: p for k, p in self.layers.named_parameters() if ".key." in k or ".value." in k}

    def forward(self, hidden: Tensor, there: Tensor) -> Tensor:
        for layer in self.layers:
            hidden = layer(hidden, there[:, None, None, :])
        return self.head((hidden * there.unsqueeze(-1)).sum(1) / there.sum(1, keepdim=True))


@dataclass(frozen=True)
class Method:
    """`optimizer` is called before each task, with groups of parameters, the strength and the first weights."""

    title: str
    optimizer: Callable[[list[dict], float, Weights], Optimizer] = lambda groups, *_: AdamW(groups, weight_decay=0.0)
    rate: float = 0.0  # of keys and values, in the middle of those that are tried first; 0: they stay
    strength: float = 0.0  # the same; 0: there is none


METHODS = {
    "linear": Method("linear probe"),
    "adamw": Method("AdamW", rate=3e-4),
    "ftp_kept": Method(
        "FTPAdamW, anchor kept", lambda groups, _, first: hft.FTPAdamW(groups, anchor=first, exclude="head.*"), 3e-3
    ),
    "ftp_moved": Method("FTPAdamW, anchor moved", lambda groups, *_: hft.FTPAdamW(groups, exclude="head.*"), 3e-3),
    "l2sp": Method(
        "L2-SP",
        lambda groups, strength, first: hft.L2SP(
            AdamW(groups, weight_decay=0.0), strength=strength, anchor=first, exclude="head.*"
        ),
        3e-4,
        1e-2,
    ),
    "ewc": Method("EWC", rate=3e-4, strength=1e3),
}


def penalty(body: Weights, past: list[dict[str, tuple[Tensor, Tensor]]]) -> Tensor:
    """EWC's (arXiv 1612.00796, eq. 3) by F and w* of each task: half of the sum of F (w - w*)^2."""
    return sum(
        ((f * (body[k] - w).square()).sum() / 2 for task in past for k, (f, w) in task.items()), start=torch.zeros(())
    )


def fisher(body: Weights, logits: Tensor, drawn: torch.Generator) -> dict[str, tuple[Tensor, Tensor]]:
    """F, the mean squared gradient of log-likelihoods of labels that the network draws, and the weights."""
    labels = torch.multinomial(logits.detach().softmax(1), 1, generator=drawn)
    likely = logits.log_softmax(1).gather(1, labels).flatten()
    each = [torch.autograd.grad(one, [*body.values()], retain_graph=True) for one in likely]
    means = [torch.stack(grads).square().mean(0) for grads in zip(*each, strict=True)]
    return {k: (f, p.detach().clone()) for (k, p), f in zip(body.items(), means, strict=True)}


def sequence(
    data: Data, tasks: tuple[Tensor, ...], train: Tensor, test: Tensor, epochs: int, batch: int, seed: int,
    name: str, head: float, rate: float, strength: float,
) -> list[list[float]]:  # fmt: skip
    """`[i][j]`: percent right in the test of task j, among all classes seen, after task i; `train` and `test` are texts
    [class, n]. In training the softmax is over the task's own classes."""
    drawn, past, matrix = generator("order", seed), [], []
    model, method = Reader(data).eval(), METHODS[name]
    model.layers.requires_grad_(False)
    first = {k: p.requires_grad_(rate > 0).detach().clone() for k, p in model.body.items()}
    groups: list[dict] = [{"params": [("head." + k, p) for k, p in model.head.named_parameters()], "lr": head}]
    groups += [{"params": [*model.body.items()], "lr": rate}] if rate else []

    def logits(classes: Tensor, texts: Tensor, among: Tensor) -> Tensor:
        return model(data.hidden[classes, texts], data.tokens[classes, texts] != 0)[:, among]

    for number, own in enumerate(tasks):
        label, texts = torch.arange(len(own)).repeat_interleave(train.shape[1]), train[own].flatten()
        optimizer = method.optimizer([dict(group) for group in groups], strength, first)
        schedule = schedule_of(optimizer, epochs * -(-len(label) // batch), 0)
        for some in (s for _ in range(epochs) for s in torch.randperm(len(label), generator=drawn).split(batch)):
            loss = cross_entropy(logits(own[label[some]], texts[some], own), label[some])
            optimizer.zero_grad()
            (loss + strength * penalty(model.body, past)).backward()
            optimizer.step()
            schedule.step()
        if name == "ewc":
            some = torch.randperm(len(label), generator=drawn)[:8]  # the graph is gone through for each
            past.append(fisher(model.body, logits(own[label[some]], texts[some], own), drawn))
        seen = torch.cat(tasks[: number + 1])
        classes = seen.repeat_interleave(test.shape[1])
        with torch.no_grad():
            right = seen[logits(classes, test[seen].flatten(), seen).argmax(1)] == classes
        matrix.append((100 * right.double()).view(number + 1, -1).mean(1).tolist())
    return matrix
