"""A pure update, and the class that runs it on a model's parameters, against ``torch.optim.Adam(foreach=True)``.

Adam over 200 tensors of 64 numbers, one thread, and over ResNet50's shapes, two threads: ``hft.adam().update`` under
``torch.no_grad``, ``hft.PureOptimizer(params, hft.adam()).step``, and torch's, in turns in one process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import hyperopt_ftp as hft

from .measure import copies, machine, of_steps, options, shapes_of, weights_of, write

OURS, CLASS = "hft.adam().update", "hft.PureOptimizer(params, hft.adam()).step"
TORCH = "torch.optim.Adam(foreach=True).step"


class Update:
    """The pure update, as steps."""

    def __init__(self, params: list[Tensor]) -> None:
        self.optimizer = hft.adam(lr=1e-3)
        self.params: dict[str, Tensor] = {str(k): p.detach().clone() for k, p in enumerate(params)}
        self.grads = {str(k): p.grad for k, p in enumerate(params)}
        self.moments = self.optimizer.init(self.params)

    @torch.no_grad()
    def step(self) -> None:
        self.params, self.moments = self.optimizer.update(self.grads, self.moments, self.params)


def candidates(first: list[Tensor]) -> tuple[dict[str, Any], Callable[[], dict[str, list[Tensor]]]]:
    """Optimizers that begin with the same weights and gradients, and what gives the weights that they have now."""
    ours, of_class, theirs = Update(first), copies(first), copies(first)
    optimizers = {
        OURS: ours,
        CLASS: hft.PureOptimizer(of_class, hft.adam(lr=1e-3)),
        TORCH: torch.optim.Adam(theirs, lr=1e-3, foreach=True),
    }
    return optimizers, lambda: {OURS: list(ours.params.values()), CLASS: of_class, TORCH: theirs}


def measured(what: str, first: list[Tensor], threads: int, rounds: int) -> dict[str, Any]:
    """Medians and ratios of the candidates, whose results are compared."""
    torch.set_num_threads(threads)
    optimizers, weights = candidates(first)
    record = of_steps(what, optimizers, rounds, first, {"over_torch": TORCH})
    found, eps = weights(), torch.finfo(torch.float32).eps
    for name in (OURS, CLASS):  # a step rounds its weight once, and is lr long but for a few roundings
        slack = (rounds + 2) * eps
        torch.testing.assert_close(found[name], found[TORCH], rtol=slack, atol=slack, check_dtype=False)
    return {"what": what, "threads": threads, **record}


def main() -> None:
    args = options(__doc__, "update.json", rounds=101, large=11).parse_args()
    records = [
        measured("200 tensors of 64 numbers", weights_of([(64,)] * 200), 1, args.rounds),
        measured("ResNet50", weights_of(shapes_of("resnet50")), 2, args.large),
    ]
    write(args.out, {"machine": machine(), "updates": records})


if __name__ == "__main__":
    main()
