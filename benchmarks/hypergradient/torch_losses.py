"""The losses in torch, and a problem's numbers as tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .problems import Problem

Params = dict[str, Tensor]
Batch = tuple[Tensor, ...]


def _mlp(p: Params, batch: Batch) -> Tensor:
    x, y = batch
    for k in range(2):
        x = torch.tanh(F.linear(x, p[f"l{k}_w"], p[f"l{k}_b"]))
    return F.cross_entropy(F.linear(x, p["l2_w"], p["l2_b"]), y)


def _conv(p: Params, batch: Batch) -> Tensor:
    x, y = batch
    for k in range(3):
        x = F.avg_pool2d(torch.tanh(_conv2d(x, p[f"c{k}_w"], p[f"c{k}_b"])), 2)
    return F.cross_entropy(F.linear(x.flatten(1), p["out_w"], p["out_b"]), y)


def _conv2d(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """In float64, which only the reference takes, by a product of matrices: torch has no fast convolution there."""
    if x.dtype != torch.float64:
        return F.conv2d(x, w, b, padding=1)
    columns = F.unfold(x, 3, padding=1)
    return (w.flatten(1) @ columns).view(len(x), -1, *x.shape[2:]) + b[:, None, None]


def _transformer(p: Params, batch: Batch) -> Tensor:
    """Attention by its formula: torch's fused kernels have no second derivative."""
    x, y = batch
    x = F.linear(x, p["in_w"], p["in_b"]) + p["place"]
    count, length, width = x.shape
    for b in ("b0", "b1"):
        n = F.layer_norm(x, (width,), p[f"{b}_n1_w"], p[f"{b}_n1_b"])
        q, k, v = F.linear(n, p[f"{b}_qkv_w"]).view(count, length, 3, 4, width // 4).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.transpose(-1, -2) * (width // 4) ** -0.5, -1)
        mixed = (weights @ v).transpose(1, 2).reshape(count, length, width)
        x = x + F.linear(mixed, p[f"{b}_mix_w"], p[f"{b}_mix_b"])
        n = F.layer_norm(x, (width,), p[f"{b}_n2_w"], p[f"{b}_n2_b"])
        up = F.gelu(F.linear(n, p[f"{b}_up_w"], p[f"{b}_up_b"]), approximate="tanh")
        x = x + F.linear(up, p[f"{b}_down_w"], p[f"{b}_down_b"])
    return F.cross_entropy(F.linear(x.mean(1), p["out_w"], p["out_b"]), y)


def _sine(p: Params, batch: Batch) -> Tensor:
    x, y = batch
    for k in range(2):
        x = torch.relu(F.linear(x, p[f"l{k}_w"], p[f"l{k}_b"]))
    return ((F.linear(x, p["l2_w"], p["l2_b"]) - y) ** 2).mean()


def _logistic(p: Params, batch: Batch) -> Tensor:
    x, y = batch
    return F.binary_cross_entropy_with_logits(x @ p["w"], y)


_LOSSES = {"mlp": _mlp, "conv": _conv, "transformer": _transformer, "sine": _sine, "logistic": _logistic}


def loss_of(problem: Problem) -> Callable[[Params, Batch], Tensor]:
    return _LOSSES[problem.net]


def penalised(p: Params, batch: Batch, l2: Tensor) -> Tensor:
    """The training loss of logistic regression; the outer loss has no penalty."""
    return _logistic(p, batch) + (l2 * p["w"] ** 2).sum()


@dataclass(frozen=True)
class Training:
    """One training: of the problem, or of one of its tasks."""

    batches: list[Batch]
    held_out: Batch


def tensors(problem: Problem, dtype: torch.dtype = torch.float32) -> tuple[Params, Tensor | None]:
    """Initial params and L2 coefficients."""
    l2 = None if problem.l2 is None else torch.from_numpy(problem.l2).to(dtype)
    return {name: torch.from_numpy(x).to(dtype, copy=True) for name, x in problem.params.items()}, l2


def together(problem: Problem, dtype: torch.dtype = torch.float32) -> Training:
    """The data of all tasks, as they lie."""

    def converted(batch: tuple) -> Batch:
        found = (torch.from_numpy(x) for x in batch)
        return tuple(x.to(dtype) if x.is_floating_point() else x for x in found)

    own = [converted(batch) for batch in problem.batches]
    return Training([own[k % len(own)] for k in range(problem.steps)], converted(problem.held_out))


def trainings(problem: Problem) -> list[Training]:
    """Those whose outer losses are averaged."""
    whole = together(problem)
    if problem.tasks is None:
        return [whole]

    def of(task: int, batch: Batch) -> Batch:
        return tuple(x[task] for x in batch)

    return [Training([of(t, b) for b in whole.batches], of(t, whole.held_out)) for t in range(problem.tasks)]


class Holder(nn.Module):
    """The params as a module, for libraries that take nothing else; ``forward`` is the loss."""

    def __init__(self, problem: Problem, params: Params) -> None:
        super().__init__()
        self.names, self.loss = list(params), loss_of(problem)
        for name, x in params.items():
            self.register_parameter(name, x if isinstance(x, nn.Parameter) else nn.Parameter(x))

    def forward(self, batch: Batch, l2: Tensor | None = None) -> Tensor:
        params = {name: getattr(self, name) for name in self.names}
        return self.loss(params, batch) if l2 is None else penalised(params, batch, l2)


def flat(grads: Any) -> Tensor:
    """A hypergradient as one vector: tensors of a dict in the order of their names."""
    if isinstance(grads, Tensor):
        return grads.detach().reshape(-1)
    return torch.cat([grads[name].detach().reshape(-1) for name in sorted(grads)])


def by_vmap(problem: Problem, trained: Callable[[Params, Batch], Params], dtype: torch.dtype) -> Callable[[], Tensor]:
    """Of problems with tasks, by ``torch.func``: ``trained(start, batch)`` is the end of one of the trainings."""
    start = tensors(problem, dtype)[0]
    data, loss = together(problem, dtype), loss_of(problem)

    def outer(params: Params) -> Tensor:
        def of_one(batch: Batch, test: Batch) -> Tensor:
            return loss(trained(params, batch), test)

        return torch.func.vmap(of_one)(data.batches[0], data.held_out).mean()

    return lambda: flat(torch.func.grad(outer)(start))


class Ends:
    """What a loop by ``torch.autograd`` differentiates in: leaves of one call, and the mean over its trainings."""

    def __init__(self, problem: Problem, params: Params, l2: Tensor | None) -> None:
        self.lr = torch.tensor(problem.lr, requires_grad=problem.over == "lr")
        self.l2 = None if l2 is None else l2.clone().requires_grad_()
        self.params = {name: nn.Parameter(x.clone()) for name, x in params.items()}
        self.over, self.sums, self.count = problem.over, {}, 0

    def add(self, outer: Tensor) -> None:
        """The derivative of one training's outer loss."""
        ends: dict[str, Any] = {"lr": {"lr": self.lr}, "l2": {"l2": self.l2}, "params": self.params}[self.over]
        found = dict(zip(ends, torch.autograd.grad(outer, list(ends.values())), strict=True))
        self.sums = {name: self.sums[name] + g for name, g in found.items()} if self.sums else found
        self.count += 1

    def mean(self) -> Tensor:
        return flat(self.sums) / self.count
