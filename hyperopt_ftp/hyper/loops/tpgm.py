"""Trainable Projected Gradient Method: radii learned on validation batches (arXiv 2303.10720)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ... import tree
from ...anchored.anchors import anchors, check_anchor
from ...anchored.projected import projected
from ...anchored.projections import FLOOR, clip_radius, row_norm
from ...calls import explained
from ...dtensors import in_layout_of, whole
from ...hparams import check_number
from ...optimizers.sgd import sgd
from ...types import Norm, Params, TreeT
from ..core.leaves import detached
from ..hypergradient import value_and_grad
from .held_out import fit_numbers, zero_loss


@explained()
def tpgm_radius(params: Params, anchor: Params, norm: Norm = "mars") -> dict[str, Tensor]:
    """TPGM's first radius of each constrained tensor: half the smallest row norm of ``params - anchor``.

    Args:
        params: pytree of tensors, after some unconstrained steps. At the anchor itself every radius would be 0.
        anchor: as in :func:`projected`.
        norm: ``"mars"`` or ``"l2"``.

    Returns:
        0-d tensors by path, at least 1e-8: the ``radius`` of :func:`projected`.

    >>> import torch, hyperopt_ftp as hft
    >>> hft.tpgm_radius({"w": torch.tensor([[3.0, 1.0], [1.0, 1.0]])}, {"w": torch.zeros(2, 2)})
    {'w': tensor(1.)}
    """
    fixed = anchors(anchor)
    check_anchor(fixed, params)
    return {n: _half_smallest(tree.working(w), fixed[n], norm) for n, w in tree.pick(params, fixed).items()}


def _half_smallest(w: Tensor, anchor: Tensor, norm: Norm) -> Tensor:
    n = whole(row_norm(w - in_layout_of(anchor, w).to(w.dtype), norm))
    return (n.amin() / 2).clamp(min=FLOOR) if n.numel() else n.new_tensor(FLOOR)


@explained()
def tpgm(
    params: TreeT,
    anchor: Params,
    outer_loss: Callable[[Params, Any], Tensor],
    batches: Iterable[Any],
    *,
    norm: Norm = "l2",
    radius_lr: float = 1e-2,
) -> tuple[TreeT, dict[str, Tensor]]:
    """TPGM after training (arXiv 2303.10720): learn how far each tensor may stay from the anchor.

    The fine-tuned weights are fixed. Adam moves the radii along
    ``d outer_loss(project(params, anchor, radius)) / d radius``, one step for each batch. With ``norm="l2"`` a
    projected tensor is ``W0 + s (W - W0)`` with ``s = min(radius / n, 1)``. For TPGM during training use
    :func:`bilevel` over the ``radius`` of :func:`projected` (``examples/tpgm.py``).

    Args:
        params: fine-tuned weights, a pytree of tensors.
        anchor: as in :func:`projected`. Tensors that are absent do not change.
        outer_loss: ``outer_loss(params, batch) -> scalar`` on validation batches.
        batches: validation batches, one for each step.
        norm: ``"l2"`` or ``"mars"``.
        radius_lr: learning rate of Adam on a radius, in units of row norm.

    Returns:
        The projected weights, and the radii by path.

    Raises:
        ValueError: an anchor that does not fit, a radius_lr outside its domain, no batches.

    As in the authors' code, a radius is clipped to ``[1e-8, largest row norm]`` after each step, and the first one is
    that of :func:`tpgm_radius`; the paper does not give one.

    >>> import torch, hyperopt_ftp as hft
    >>> w, w0 = {"w": torch.tensor([[4.0, 0.0]])}, {"w": torch.zeros(1, 2)}
    >>> new, radii = hft.tpgm(w, w0, lambda p, x: ((p["w"] - x) ** 2).sum(), [torch.tensor([[1.0, 0.0]])] * 200,
    ...     radius_lr=0.05)
    >>> round(radii["w"].item(), 1)
    1.0
    """
    check_number("radius_lr", radius_lr)
    fixed = detached(anchors(anchor))
    params = detached(params)
    radii = tpgm_radius(params, fixed, norm)
    held = projected(sgd(lr=0.0), fixed, norm, radius=radii)
    weights = tree.pick(params, fixed)

    def slopes(radii: dict[str, Tensor], batch: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        hparams = {**held.hparams, "radius": radii}
        outer = lambda p: outer_loss(tree.put(params, p), batch)  # noqa: E731
        _, found, (_, after) = value_and_grad(held, zero_loss, outer, weights, [None], "radius", hparams)
        return found["radius"], after.norms

    def keep(radii: dict[str, Tensor], norms: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: clip_radius(r.clamp(min=FLOOR), whole(norms[name])) for name, r in radii.items()}

    radii = fit_numbers(radii, radius_lr, batches, slopes, keep)
    zeros = tree.map_tree(torch.zeros_like, weights)
    new, _ = held.update(zeros, held.init(weights), weights, {**held.hparams, "radius": radii})
    return tree.put(params, new), radii
