"""Mixout: a forward pass with some of the weights set back to the anchor."""

from __future__ import annotations

import torch
from torch import Tensor

from ..calls import explained
from ..hparams import Domain, check_number
from ..tree import working
from ..types import Number
from .entries import Weights, shared

_SHARE = Domain(0.0, 1.0, open_high=True)


@explained()
def mixout(weights: Weights, anchor: Weights, p: Number = 0.5) -> dict[str, Tensor]:
    """Mixout (arXiv 1909.11299): for one forward pass of training, some weights are those of the anchor.

    For each input j of a tensor, with ``m_j`` = 0 with probability ``p``, else 1::

        W[:, j] <- W0[:, j] + m_j (W[:, j] - W0[:, j]) / (1 - p)

    so that the mean over draws is ``W``. Inputs are dim 1, or dim 0 of a depthwise convolution, which has an input of
    its own for each channel (dim 1 is 1 there). It is dropout toward the anchor: an input whose weights are set back
    gets no gradient in this step.

    Args:
        weights: as they are trained, by name: ``dict(model.named_parameters())``. Give the result to
            ``torch.func.functional_call``, in training alone; the trained weights are used as they are.
        anchor: pre-trained, by name, detached; a name that is absent (a new head) stays free.
        p: probability with which an input's weights are set back, in [0, 1). The paper uses up to 0.9. It may be a 0-d
            tensor (for ``vmap``), but there is no derivative in it: which weights are set back depends on it.

    Returns:
        The weights by name, differentiable in ``weights``. Tensors with fewer than two dims (biases, norms) stay as
        they are, as in the authors' code, which mixes the weights of linear layers alone. Theirs leaves ``1 / (1 - p)``
        out of the gradient; here it is that of the formula. The draws are torch's default generator's, so ``train``
        makes the same ones where it makes a step again.

    Raises:
        TypeError, ValueError: as :func:`wise`; p outside [0, 1), or one that requires grad.

    >>> import torch, hyperopt_ftp as hft
    >>> _ = torch.manual_seed(0)
    >>> hft.mixout({"w": torch.full((2, 4), 3.0)}, {"w": torch.full((2, 4), 1.0)}, p=0.5)["w"]
    tensor([[1., 5., 1., 1.],
            [1., 5., 1., 1.]])
    """
    check_number("p", p, _SHARE)
    if isinstance(p, Tensor) and p.requires_grad:
        raise ValueError("p must not require grad, since the draws depend on it; pass p.detach(), or try several")
    names = {name for name in shared(weights, anchor) if weights[name].ndim > 1}
    return {name: _drawn(w, anchor[name], p) if name in names else w for name, w in weights.items()}


def _drawn(w: Tensor, w0: Tensor, p: Number) -> Tensor:
    wide = working(w)
    dim = 0 if w.ndim > 2 and w.shape[1] == 1 else 1
    draws = torch.rand(w.shape[dim], dtype=torch.float32, device=w.device) >= p
    kept = draws.to(wide).reshape(*[-1 if d == dim else 1 for d in range(w.ndim)]) / (1 - p)
    far = w0.to(wide)
    return (far + kept * (wide - far)).to(w.dtype)
