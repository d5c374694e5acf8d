"""Mixout: a forward pass with some of the weights set back to the anchor."""

from __future__ import annotations

import torch
from torch import Tensor

from ..calls import explained
from ..hparams import Domain, check_number
from ..tree import working
from ..types import Number
from .entries import Weights, shared, some

_SHARE = Domain(0.0, 1.0, open_high=True)


@explained()
def mixout(weights: Weights, anchor: Weights, p: Number = 0.5) -> dict[str, Tensor]:
    """Mixout (arXiv 1909.11299): in each forward pass of training, some weights are those of the anchor.

    For each input j of a tensor, with ``m_j`` = 0 with probability ``p``, else 1::

        W[:, j] <- W0[:, j] + m_j (W[:, j] - W0[:, j]) / (1 - p)

    The mean over draws is ``W``. Inputs are dim 1. In a depthwise convolution they are dim 0, since each channel has
    its own input there (dim 1 has size 1). Weights that are replaced by the anchor get no gradient in this step.
    Tensors with fewer than two dims (biases, norms) do not change.

    Args:
        weights: trained weights by name: ``dict(model.named_parameters())``. Give the result to
            ``torch.func.functional_call``, in training only; evaluate with the trained weights themselves.
        anchor: pre-trained weights by name, detached. A name that is absent (a new head) is not mixed.
        p: probability that an input's weights are replaced, in [0, 1). The paper uses up to 0.9. It may be a 0-d tensor
            (for ``vmap``), but has no derivative.

    Returns:
        The weights by name, differentiable in ``weights``. The draws come from torch's default generator, so ``train``
        repeats them when it recomputes a step.

    Raises:
        TypeError, ValueError: as :func:`wise`; p outside [0, 1), or one that requires grad.

    Differs from the authors' code, which mixes the weights of linear layers only, and leaves ``1 / (1 - p)`` out of the
    gradient.

    >>> import torch, hyperopt_ftp as hft
    >>> _ = torch.manual_seed(0)
    >>> hft.mixout({"w": torch.full((2, 4), 3.0)}, {"w": torch.full((2, 4), 1.0)}, p=0.5)["w"]
    tensor([[1., 5., 1., 1.],
            [1., 5., 1., 1.]])
    """
    check_number("p", p, _SHARE)
    if isinstance(p, Tensor) and p.requires_grad:
        raise ValueError("p must not require grad, since the draws depend on it; pass p.detach(), or try several")
    names = {name for name in some(shared(weights, anchor)) if weights[name].ndim > 1}
    return {name: _drawn(w, anchor[name], p) if name in names else w for name, w in weights.items()}


def _drawn(w: Tensor, w0: Tensor, p: Number) -> Tensor:
    wide = working(w)
    dim = 0 if w.ndim > 2 and w.shape[1] == 1 else 1
    draws = torch.rand(w.shape[dim], dtype=torch.float32, device=w.device) >= p
    kept = draws.to(wide).reshape(*[-1 if d == dim else 1 for d in range(w.ndim)]) / (1 - p)
    far = w0.to(wide)
    return (far + kept * (wide - far)).to(w.dtype)
