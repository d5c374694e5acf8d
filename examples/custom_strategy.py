"""A strategy of your own: the finite difference of DARTS (arXiv 1806.09055, eq. 8).

For one SGD step ``p' = p - lr * dL_train(p, h) / dp``, the hypergradient ``-lr * d^2 L_train / dh dp . v`` with
``v = dL_outer / dp'`` is taken from two gradients at ``p +- e v``. Run: python -m examples.custom_strategy
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

import hyperopt_ftp as hft
from hyperopt_ftp import tree
from hyperopt_ftp.hyper import InnerProblem, Strategy, TrainInputs, TrainOutputs, with_pullback

from .digits import batches, digits, logits, loss, network


@dataclass(frozen=True)
class Darts(Strategy):
    """One step of plain SGD; hyperparameters of the loss only."""

    scale: float = 1e-2

    def __call__(self, problem: InnerProblem, inputs: TrainInputs) -> TrainOutputs:
        if len(inputs.batches) != 1:
            raise ValueError(f"Darts looks back one step, got {len(inputs.batches)} batches")
        others = tree.leaves(inputs._replace(hparams={**inputs.hparams, "loss": None}))
        if any(isinstance(x, torch.Tensor) and x.requires_grad for x in others):
            raise ValueError("Darts has derivatives in hparams['loss'] only")
        if set(inputs.hparams) != {"lr", "momentum", "dampening", "weight_decay", "loss"} or inputs.hparams["momentum"]:
            raise ValueError("Darts is the derivative of a step of plain SGD")
        return with_pullback(self.pullback, problem, inputs)

    def pullback(
        self, problem: InnerProblem, inputs: TrainInputs, end: TrainOutputs, cotangents: TrainOutputs
    ) -> TrainInputs:
        (batch,), h, v = inputs.batches, inputs.hparams, cotangents.params
        size = torch.stack([(x**2).sum() for x in tree.leaves(v)]).sum().sqrt()
        e = self.scale / torch.where(size == 0, 1.0, size)

        def slope(sign: int) -> Any:
            """The training loss's gradient in its hparams, a little way along v."""
            shifted = tree.map_tree(lambda p, u: p + sign * e * u, inputs.params, v)
            # Each call of problem.loss draws the same random numbers, so their difference is that of the weights.
            return torch.func.grad(lambda own: problem.loss(shifted, batch, {**h, "loss": own}))(h["loss"])

        found = tree.map_tree(lambda a, b: -h["lr"] * (a - b) / (2 * e), slope(1), slope(-1))
        nothing = tree.map_tree(lambda _: None, h)
        return TrainInputs({**nothing, "loss": found}, params=None, state=None)


def weighted(params: Any, batch: Any, h: Any) -> torch.Tensor:
    """Each class has a weight; the wrong labels of one class should be found out."""
    each = torch.nn.functional.cross_entropy(logits(params, batch[0]), batch[1], reduction="none")
    return (torch.sigmoid(h["weight"])[batch[1]] * each).mean()


def main() -> None:
    (x, y), held_out = digits()
    y = torch.where(y == 3, (y + torch.arange(len(y))) % 10, y)  # labels of threes are shuffled over all classes
    opt = hft.sgd(lr=0.3)
    weight = torch.zeros(10, dtype=torch.float64, requires_grad=True)
    hparams = {"loss": {"weight": weight}}
    batch = next(batches((x, y), 1, size=1400))
    print("d validation loss / d class weight, after one step")
    for name, strategy in (("exact (Unroll)", hft.Unroll()), ("DARTS", Darts())):
        run = hft.train(opt, weighted, network(), [batch], hparams=hparams, strategy=strategy)
        (slope,) = torch.autograd.grad(loss(run.params, held_out), weight)
        print(f"{name:>16}: " + " ".join(f"{g:+.4f}" for g in slope.tolist()))


if __name__ == "__main__":
    main()
