"""LiNeS: the way from the anchor to the fine-tuned weights, scaled by depth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from ..calls import explained
from ..hparams import Domain, check_number
from ..optimizers.depth import Layers, by_depth
from .entries import Weights, as_state_dict, check_tied, copied, ends, lerped, some

_SCALE = Domain(0.0, float("inf"), open_high=True)


@explained()
def lines(
    weights: Weights, anchor: Weights | Literal["zero"], layers: Layers, *, alpha: float = 0.5, beta: float = 0.5
) -> dict[str, Tensor]:
    """LiNeS (arXiv 2410.17146), after training: deeper layers keep more of their fine-tuning.

    For layer k of L, counted from 1 at the input::

        W <- W0 + (alpha + beta (k - 1) / (L - 1)) (W - W0)

    Args:
        weights, anchor: as in :func:`wise`, also of LoRA.
        layers: as in :func:`by_depth`. Entries in no layer are scaled by ``alpha``, like the first layer, as in the
            authors' code. So put a head that has an anchor into the last layer.
        alpha: share that the first layer keeps, >= 0.
        beta: what the last layer keeps beyond ``alpha``, >= 0. For a single fine-tuned model the paper tunes one
            number, with ``beta = 1 - alpha``, so that the last layer does not change.

    Returns:
        New tensors by name, as :func:`wise`. ``alpha=1, beta=0`` gives ``weights``; ``alpha=s, beta=0`` is :func:`wise`
        with ``strength = 1 - s``.

    Raises:
        TypeError, ValueError: as :func:`wise` and :func:`by_depth`; alpha or beta below 0.

    >>> import torch, hyperopt_ftp as hft
    >>> w0 = {"stem.w": torch.zeros(1), "mid.w": torch.zeros(1), "top.w": torch.zeros(1)}
    >>> w = {name: torch.ones(1) for name in w0}
    >>> hft.lines(w, w0, ["stem", "mid", "top"], alpha=0.2, beta=0.8)
    {'stem.w': tensor([0.2000]), 'mid.w': tensor([0.6000]), 'top.w': tensor([1.])}
    """
    check_number("alpha", alpha, _SCALE)
    check_number("beta", beta, _SCALE)
    far = some(ends(weights, anchor))
    # Layers without an adapter count too, but not a head without an anchor.
    names = far if isinstance(anchor, Mapping) else weights
    scales = {**dict.fromkeys(far, alpha), **by_depth(list(names), layers, alpha, alpha + beta)}
    check_tied(weights, {name: 1 - scales[name] for name in far}, far)
    mixed = {name: lerped(w, far[name], 1 - scales[name]) if name in far else copied(w) for name, w in weights.items()}
    return as_state_dict(mixed, weights)
