"""Model Stock: a few models that were fine-tuned from one anchor, and the anchor, averaged layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..calls import explained
from ..tree import working
from .entries import MERGE, Weights, as_state_dict, check_same, check_tied, copied, ends, factors, not_zero


@explained()
def model_stock(
    models: Sequence[Weights], anchor: Weights | Literal["zero"]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Model Stock (arXiv 2403.19522), after training, for K models that were fine-tuned from one anchor.

    For each tensor, with ``cos`` the mean over pairs of models of the cosine between their ``W_i - W0``::

        t = K cos / ((K - 1) cos + 1)
        W = t mean(W_i) + (1 - t) W0

    Models that moved in one direction are averaged; the less they agree, the larger the share of the anchor.

    Args:
        models: state_dicts by name, at least two, from other seeds, orders of the data or hyperparameters.
        anchor: pre-trained, by name. An entry that is absent (a new head) becomes the mean of the models. ``"zero"``:
            as in :func:`wise`, for LoRA.

    Returns:
        New weights by name, in the dtypes of the first model, and ``t`` by name. Entries that are not floating-point
        (counts of batches) are those of the first model. BatchNorm's statistics are averaged like weights; better
        recompute them (``torch.optim.swa_utils.update_bn``).

        Of LoRA's factors the product is averaged, which has K times their rank: the new A has the models' ones below
        each other, the new B theirs side by side, times ``t / K`` (``t`` has the name of B). In peft's config ``r`` and
        ``lora_alpha`` are then K times as large; with ``use_rslora`` the latter sqrt(K) times. Not for peft's
        ``target_parameters``, factors of several experts.

    Raises:
        TypeError: something that is not a dict, one dict instead of a list.
        ValueError: fewer than two models, models with other names or shapes; as :func:`wise`.

    If the mean cosine is negative, where the paper's ``t`` would be negative or infinite, t = 0 gives the anchor. The
    paper also averages during training; this is its average at the end.

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
    far = [ends(weights, anchor) for weights in models]
    first = models[0]
    for weights in models[1:]:
        other = sorted(first.keys() ^ weights.keys())
        if other:
            raise ValueError(f"models must have the same names, but only some have {other[:5]}")
        wrong = [n for n, w in first.items() if isinstance(w, Tensor) and _shape(weights[n]) != w.shape]
        if wrong:
            raise ValueError(f"models must have the same shapes, but {wrong[:5]} differ")
        for name, w in first.items():
            if isinstance(w, Tensor) and not w.is_floating_point():
                check_same(name, w, weights[name])
    names, pairs = set.intersection(*map(set, far)), factors(first, first)
    check_tied(first, dict.fromkeys(names, 1.0), far[0])
    scales = [n for n in first if n.endswith(".alpha") and any(a.startswith(f"{n[:-5]}lora_") for a in pairs)]
    if scales:
        raise ValueError(f"{scales[:5]} are divided by the rank, which is K times as large afterwards; {MERGE}")
    firsts, merged, ratios = {b: a for a, b in pairs.items()}, {}, {}
    for name, w in first.items():
        if not isinstance(w, Tensor) or not w.is_floating_point():
            merged[name] = copied(w)
            continue
        if name in names and (name in pairs or (name in firsts and far[0][name].any())):
            raise not_zero(name)
        wide = _of_all(models, name)
        a = _of_all(models, firsts[name]) if name in firsts else None
        if name in pairs:
            new = wide.flatten(0, 1)
        else:
            new = wide.mean(0) if a is None else wide.transpose(0, 1).flatten(1, 2) / len(models)
        if name in names:
            w0 = far[0][name].detach().to(wide)
            ratios[name] = _ratio(wide - w0, a)
            new = torch.lerp(w0 if a is None else torch.zeros_like(new), new, ratios[name])
        merged[name] = new.to(w.dtype)
    return as_state_dict(merged, first), ratios


def _of_all(models: Sequence[Weights], name: str) -> Tensor:
    return torch.stack([weights[name].detach().to(working(models[0][name])) for weights in models])


def _shape(x: Any) -> torch.Size | None:
    return x.shape if isinstance(x, Tensor) else None


def _ratio(ways: Tensor, firsts: Tensor | None) -> Tensor:
    """``t`` of the ways from the anchor, or of their products with LoRA's first factors."""
    k = len(ways)
    if firsts is None:
        rows = _of_one_size(ways.reshape(k, ways[0].numel()))
        inner = rows @ rows.T
    else:
        b, a = _of_one_size(ways.flatten(2)), _of_one_size(firsts.flatten(2))
        inner = torch.einsum("iop,joq,ipn,jqn->ij", b, b, a, a)
    size = inner.diagonal().sqrt()
    # A model that did not move has no direction: its cosine with others is 0.
    cos = torch.nan_to_num(inner / torch.outer(size, size), 0.0).fill_diagonal_(0).sum() / (k * (k - 1))
    cos = cos.clamp(0, 1)
    return k * cos / ((k - 1) * cos + 1)


def _of_one_size(ways: Tensor) -> Tensor:
    """With 1 as the largest entry of each model, so that no square of a small or large one is lost."""
    most = torch.stack([x.abs().max() if x.numel() else x.new_ones(()) for x in ways])
    return ways / most.where(most > 0, 1.0).view(-1, *[1] * (ways.ndim - 1))
