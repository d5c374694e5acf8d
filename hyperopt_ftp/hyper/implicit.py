"""The hypergradient at a stationary point, by the implicit function theorem."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import tree
from ..hparams import Domain, check_choice, check_number
from ..types import Params
from .inner import Inner, Result

__all__ = ["Implicit"]


@dataclass(frozen=True)
class Implicit:
    """Hypergradient at the end of training, without the way there (arXiv 1911.02590).

    The steps are run, and their end ``p`` is taken for a fixed point of the last one. With the optimizer's state held,
    ``F(p, h) = p - update(p; h) = 0`` defines p(h), so::

        dL/dh = -(d F / dh)^T x,    ((dF/dp)^T + damping I) x = dL/dp

    For SGD, ``dF/dp = lr (H + weight_decay I)`` with the Hessian H of the training loss, which is never formed: a
    product with it costs two gradients. Memory is that of one step, whatever the number of steps. Hyperparameters
    that do not move the fixed point (lr, momentum, betas) have derivative 0; weight decay and those of the loss do not.

    Args:
        solver: ``"neumann"``: the series ``sum_j (I - dF/dp)^j`` of ``torchopt.linalg.ns``, for any optimizer whose
            steps contract. ``"cg"``: conjugate gradients, for a symmetric positive ``dF/dp``: SGD, with or without
            momentum.
        iterations: terms of the series, or steps of conjugate gradients.
        damping: added to the diagonal, in units of ``dF/dp``.

    Raises:
        ValueError: an unknown solver, iterations below 1, damping below 0.

    The last batch stands for the training loss. Conjugate gradients are our own: TorchOpt's pass step sizes as Python
    numbers, which cuts the outer graph and fails under vmap.

    >>> import torch, hyperopt_ftp as hft
    >>> def loss(p, x, h): return ((p - x) ** 2).sum() + h["l2"] * (p**2).sum()
    >>> w, data = torch.zeros(1, dtype=torch.float64), [torch.ones(1, dtype=torch.float64)] * 200
    >>> opt = hft.sgd(lr=0.1)
    >>> _, grads, (p, _) = hft.hypergradient(
    ...     opt, loss, lambda p: p.sum(), w, data, over="loss", strategy=hft.Implicit(iterations=100),
    ...     hparams={**opt.hparams, "loss": {"l2": torch.tensor(1.0, dtype=torch.float64)}},
    ... )
    >>> round(grads["loss"]["l2"].item(), 6)            # p = 1 / (1 + l2)
    -0.25
    """

    solver: str = "neumann"
    iterations: int = 20
    damping: float = 0.0

    def __post_init__(self) -> None:
        check_choice("solver", self.solver, ("neumann", "cg"))
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations}")
        check_number("damping", self.damping, Domain(0.0, float("inf"), open_high=True))

    def through_steps(self, inner: Inner, tuned: dict[str, Any]) -> Result:
        params, state = inner.params, inner.begin(tuned)
        for k in range(len(inner.batches)):
            params, state = inner.step(params, state, k, tuned)
        last = len(inner.batches) - 1
        value, pull = torch.func.vjp(inner.outer, params)[:2]
        slope = pull(torch.ones_like(value))[0]

        def residual(p: Params, h: dict[str, Any]) -> Params:
            return tree.map_tree(torch.sub, p, inner.step(p, state, last, h)[0])

        back = torch.func.vjp(residual, params, tuned)[1]

        def matvec(x: Params) -> Params:
            return tree.map_tree(lambda y, x: y + self.damping * x, back(x)[0], x)

        x = self._solve(matvec, slope)
        grads = tree.map_tree(torch.neg, back(x)[1])
        return value, grads, (params, state)

    def _solve(self, matvec: Any, b: Params) -> Params:
        if self.solver == "cg":
            return conjugate_gradients(matvec, b, self.iterations)
        from torchopt.linalg import ns

        return ns(matvec, b, maxiter=self.iterations)


def conjugate_gradients(matvec: Any, b: Params, iterations: int) -> Params:
    """``x`` with ``matvec(x) = b`` after so many steps from 0; a residual of exactly 0 stays where it is."""

    def dot(x: Params, y: Params) -> Tensor:
        return torch.stack([(u * v).sum() for u, v in zip(tree.leaves(x), tree.leaves(y), strict=True)]).sum()

    def ratio(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(b == 0, 0.0, a / torch.where(b == 0, 1.0, b))

    x, r, p = tree.map_tree(torch.zeros_like, b), b, b
    rr = dot(r, r)
    for _ in range(iterations):
        q = matvec(p)
        alpha = ratio(rr, dot(p, q))
        x = tree.map_tree(lambda x, p, a=alpha: x + a * p, x, p)
        r = tree.map_tree(lambda r, q, a=alpha: r - a * q, r, q)
        rr, old = dot(r, r), rr
        beta = ratio(rr, old)
        p = tree.map_tree(lambda r, p, c=beta: r + c * p, r, p)
    return x
