"""Model Stock: a few models that were fine-tuned from one anchor, and the anchor, averaged layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from ..calls import explained
from ..tree import working
from .entries import Weights, copied, shared


@explained()
def model_stock(models: Sequence[Weights], anchor: Weights) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Model Stock (arXiv 2403.19522), after training, for K models that were fine-tuned from one anchor.

    For each tensor, with ``cos`` the mean over pairs of models of the cosine between their ``W_i - W0``::

        t = K cos / ((K - 1) cos + 1)
        W = t mean(W_i) + (1 - t) W0

    Models that moved in one direction are averaged; the less they agree, the larger the share of the anchor.

    Args:
        models: state_dicts by name, at least two, from other seeds, orders of the data or hyperparameters.
        anchor: pre-trained, by name. An entry that is absent (a new head) becomes the mean of the models.

    Returns:
        New weights by name, in the dtypes of the first model, and ``t`` by name. Entries that are not floating-point
        (counts of batches) are those of the first model. BatchNorm's statistics are averaged like weights; better
        recompute them (``torch.optim.swa_utils.update_bn``).

    Raises:
        TypeError: something that is not a dict, one dict instead of a list.
        ValueError: fewer than two models, models with other names or shapes; as :func:`wise`.

    If the mean cosine is negative, t = 0 gives the anchor: the paper leaves this case open, and its ``t`` would be
    negative or infinite. The paper also averages during training; this is its average at the end.

    >>> import torch, hyperopt_ftp as hft
    >>> w0 = {"w": torch.zeros(2)}
    >>> models = [{"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([1.0, 1.0])}]  # cos = 0.7071
    >>> merged, t = hft.model_stock(models, w0)
    >>> merged["w"], t["w"]
    (tensor([0.8284, 0.4142]), tensor(0.8284))
    """
    if not isinstance(models, Sequence):
        raise TypeError(f"models must be a list of state_dicts, got {type(models).__name__}")
    if len(models) < 2:
        raise ValueError(f"models must be at least two, got {len(models)}; one and its anchor are mixed by wise")
    mixed = [set(shared(weights, anchor)) for weights in models]
    first = models[0]
    for weights in models[1:]:
        other = sorted(first.keys() ^ weights.keys())
        if other:
            raise ValueError(f"models must have the same names, but only some have {other[:5]}")
        wrong = [n for n, w in first.items() if isinstance(w, Tensor) and _shape(weights[n]) != w.shape]
        if wrong:
            raise ValueError(f"models must have the same shapes, but {wrong[:5]} differ")
    names = set.intersection(*mixed)
    ratios = {name: _ratio([weights[name] for weights in models], anchor[name]) for name in first if name in names}
    merged = {}
    for name, w in first.items():
        if not isinstance(w, Tensor) or not w.is_floating_point():
            merged[name] = copied(w)
            continue
        wide = torch.stack([weights[name].detach().to(working(w)) for weights in models]).mean(0)
        if name in ratios:
            wide = torch.lerp(anchor[name].detach().to(wide), wide, ratios[name].to(wide))
        merged[name] = wide.to(w.dtype)
    return merged, ratios


def _shape(x: Any) -> torch.Size | None:
    return x.shape if isinstance(x, Tensor) else None


def _ratio(weights: list[Tensor], w0: Tensor) -> Tensor:
    wide = working(weights[0])
    away = [w.detach().to(wide).flatten() - w0.detach().to(wide).flatten() for w in weights]
    pairs = list(combinations(away, 2))
    # A model that did not move has no direction: its cosine with others is 0.
    cos = torch.stack([torch.nan_to_num(a @ b / (a.norm() * b.norm()), 0.0) for a, b in pairs]).mean().clamp(0, 1)
    return len(weights) * cos / ((len(weights) - 1) * cos + 1)
