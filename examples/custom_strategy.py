"""A strategy of one's own: the finite difference of DARTS (arXiv 1806.09055, eq. 8).

For one SGD step ``p' = p - lr * dL_train(p, h) / dp``, the hypergradient ``-lr * d^2 L_train / dh dp . v`` with
``v = dL_outer / dp'`` is taken from two gradients at ``p +- e v``. Run: python -m examples.custom_strategy
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

import hyperopt_ftp as hft
from hyperopt_ftp import tree

from .digits import batches, digits, logits, loss, network


@dataclass(frozen=True)
class Darts:
    """One step; hyperparameters of the loss only."""

    scale: float = 1e-2

    def through_steps(self, inner: Any, tuned: dict[str, Any]) -> Any:
        if len(inner.batches) != 1:
            raise ValueError(f"Darts looks back one step, got {len(inner.batches)} batches")
        end = inner.step(inner.params, inner.begin(tuned), 0, tuned)
        v, value = torch.func.grad_and_value(inner.outer)(end[0])
        e = self.scale / torch.stack([(x**2).sum() for x in tree.leaves(v)]).sum().sqrt()
        sides = [
            torch.func.grad(inner.loss, argnums=2)(
                tree.map_tree(lambda p, u, s=s: p + s * e * u, inner.params, v), 0, tuned
            )
            for s in (1, -1)
        ]
        lr = inner.split(tuned)[0]["lr"]
        grads = tree.map_tree(lambda a, b: -lr * (a - b) / (2 * e), *sides)
        return value, grads, end


def weighted(params: Any, batch: Any, h: Any) -> torch.Tensor:
    """Each class has a weight; the wrong labels of one class should be found out."""
    each = torch.nn.functional.cross_entropy(logits(params, batch[0]), batch[1], reduction="none")
    return (torch.sigmoid(h["weight"])[batch[1]] * each).mean()


def main() -> None:
    (x, y), held_out = digits()
    y = torch.where(y == 3, (y + torch.arange(len(y))) % 10, y)  # labels of threes are shuffled over all classes
    opt = hft.sgd(lr=0.3)
    hparams = opt.hparams | {"loss": {"weight": torch.zeros(10, dtype=torch.float64)}}
    batch = next(batches((x, y), 1, size=1400))
    print("d validation loss / d class weight, after one step")
    for name, strategy in (("exact (Unroll)", hft.Unroll()), ("DARTS", Darts())):
        _, grads, _ = hft.hypergradient(
            opt, weighted, lambda p: loss(p, held_out), network(), [batch], "loss.weight", hparams, strategy=strategy
        )
        print(f"{name:>16}: " + " ".join(f"{g:+.4f}" for g in grads["loss.weight"].tolist()))


if __name__ == "__main__":
    main()
