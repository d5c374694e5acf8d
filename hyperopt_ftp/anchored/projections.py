"""Projections onto balls around an anchor: the pure maths of FTP's constraint, one tensor ("layer") at a time."""

from __future__ import annotations

from typing import Any, get_args

import torch
from einops import reduce
from torch import Tensor

from ..calls import check_choice
from ..dtensors import everywhere
from ..types import Norm

#: Added to every norm, and the smallest radius that is learned (the authors' value).
FLOOR = 1e-8

#: Rows of a tensor by norm; tensors with fewer than two dimensions are one row.
NORMS: tuple[str, ...] = get_args(Norm)


def check_norm(norm: Any) -> None:
    if norm in ("l1", "L1"):
        raise ValueError(f"norm must be one of 'mars', 'l2', got {norm!r}; 'mars' is the L1 norm of each row")
    check_choice("norm", norm, NORMS)


def rows(x: Tensor, norm: Norm) -> torch.Size:
    """Shape of a value for each row of ``x``: rows are dim 0; 0-d and 1-D tensors are one, and all of it for "l2"."""
    return x.shape[:1] if norm == "mars" and x.ndim >= 2 else torch.Size((1,))


def row_norm(deviation: Tensor, norm: Norm = "mars") -> Tensor:
    """Norm of each row of a deviation from the anchor, plus 1e-8.

    ``"mars"``: ``n_i = sum_j |d_ij| + 1e-8``. Rows are dim 0, columns all other dims (arXiv 2002.08253). The largest
    n_i is the operator norm induced by the maximum norm. ``"l2"``: ``n = ||d||_F + 1e-8`` as one row (TPGM, arXiv
    2303.10720).

    Args:
        deviation: any shape. 0-d and 1-D tensors are ONE row.
        norm: ``"mars"`` or ``"l2"``.

    Returns:
        Shape (rows,), the dtype of ``deviation``. The derivative at a zero row is 0.

    Raises:
        ValueError: an unknown norm.

    >>> import torch
    >>> from hyperopt_ftp.anchored import row_norm
    >>> row_norm(torch.tensor([[3.0, -4.0], [0.0, 1.0]]))
    tensor([7., 1.])
    """
    check_norm(norm)
    to_rows = "row ... -> row" if norm == "mars" and deviation.ndim >= 2 else "... -> 1"
    if norm == "mars":
        return reduce(deviation.abs(), to_rows, "sum") + FLOOR
    square = reduce(deviation * deviation, to_rows, "sum")
    zero = square == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt()) + FLOOR


def row_scale(radius: Tensor, norms: Tensor) -> Tensor:
    """``min(radius / n_i, 1)``, shape (rows,), with the derivative of ``clamp``: at a tie the row counts as clipped.

    Written with ``where`` so that an infinite radius has derivative 0 and not NaN. A NaN on either side is kept.
    """
    clipped = ~(radius > norms)
    return torch.where(clipped, torch.where(clipped, radius, norms) / norms, 1.0)


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """Values of shape (rows,) or (1,), shaped to broadcast over the rows of ``like``."""
    return values.reshape(values.shape + (1,) * (like.ndim - 1)) if like.ndim else values.reshape(())


def project(weights: Tensor, anchor: Tensor, radius: Tensor, norm: Norm = "mars") -> Tensor:
    """Scale each row of ``weights - anchor`` down to the ball of a radius.

    With ``c = weights - anchor`` and its row norms ``n`` (:func:`row_norm`)::

        project(weights)_i = anchor_i + min(radius / n_i, 1) * c_i

    For ``"l2"`` this is ``argmin_x ||x - weights||_2`` subject to ``||x - anchor||_2 <= radius`` (up to the 1e-8 in n).
    For ``"mars"`` it is the radial map of arXiv 2002.08253 and 2310.19182, eq. 3. That map is feasible and idempotent
    up to a relative ``1e-8 / (radius + 1e-8)``, but does not give the nearest point of the L1 ball. ``radius = inf``
    gives ``weights`` up to the rounding of ``anchor + c``; ``radius = 0`` gives the anchor exactly.

    Args:
        weights, anchor: same shape and dtype.
        radius: 0-d tensor, the largest allowed norm of a row, in units of the weights.
        norm: ``"mars"`` or ``"l2"``.

    Returns:
        The projected weights, of the shape and dtype of ``weights``.

    Raises:
        ValueError: an unknown norm.

    >>> import torch
    >>> from hyperopt_ftp.anchored import project
    >>> project(torch.tensor([[3.0, 1.0], [0.2, 0.2]]), torch.zeros(2, 2), torch.tensor(2.0))
    tensor([[1.5000, 0.5000],
            [0.2000, 0.2000]])
    """
    c = weights - anchor
    return rescaled(anchor, c, radius, row_norm(c, norm))


def rescaled(anchor: Tensor, deviation: Tensor, radius: Tensor, norms: Tensor) -> Tensor:
    """``anchor_i + min(radius / n_i, 1) * c_i``: the projection once the deviation c and its row norms n are known."""
    scale = row_scale(radius, norms).to(deviation.dtype)
    return anchor + per_row(scale, deviation) * deviation


def largest(norms: Tensor) -> Tensor:
    """The largest row norm, 0-d; the floor for a tensor without rows."""
    norms = everywhere(norms)  # amax of shards has a derivative that is NaN (torch 2.13)
    return norms.amax() if norms.numel() else norms.new_full((), FLOOR)


def clip_radius(radius: Tensor, norms: Tensor) -> Tensor:
    """``min(radius, max_i n_i)`` with the radius's whole derivative at a tie (``torch.minimum`` halves it).

    A NaN among the norms does not reach the radius here.
    """
    top = largest(norms)
    return torch.where(radius > top, top, radius)
