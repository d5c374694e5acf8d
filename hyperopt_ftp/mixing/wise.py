"""WiSE-FT: weights between the fine-tuned and the pre-trained ones, with one share or a learned one for each tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from ..calls import did_you_mean, explained
from ..hparams import DOMAINS, Domain, check_number
from ..hyper.hypergradient import value_and_grad
from ..hyper.loops.held_out import fit_numbers, zero_loss
from ..tree import working
from ..types import Number, Optimizer
from .entries import Weights, as_state_dict, check_tied, copied, detached, ends, lerped, some, tied

_SHARE = Domain(0.0, 1.0)


@explained()
def wise(
    weights: Weights, anchor: Weights | Literal["zero"], strength: Number | Mapping[str, Number] = 0.5
) -> dict[str, Tensor]:
    """WiSE-FT (arXiv 2109.01903, eq. 1): ``(1 - strength) * W + strength * W0``, entry by entry of two state_dicts.

    Of LoRA's factors the product ``B A`` is mixed, as the weight that it is added to would be: ``B`` becomes
    ``(1 - strength) * B`` and ``A`` stays.

    Args:
        weights: fine-tuned, by name: a whole ``module.state_dict()``, so that BatchNorm's statistics are mixed too.
        anchor: pre-trained, by name. An entry that is absent (a new head) does not change. ``"zero"``: LoRA's adapters
            are mixed with 0, the pre-trained model, and nothing else changes.
        strength: share of the anchor: number or 0-d tensor in [0, 1], or a dict of them by name (absent: 0). The
            paper's alpha is ``1 - strength``. 0 gives ``weights``, 1 the anchor, both exactly.

    Returns:
        New tensors by name, in the dtypes of ``weights``; those that are mixed can be differentiated. Entries that are
        not floating-point (counts of batches) are those of ``weights``. Equal entries do not change, infinite ones too.

    Raises:
        TypeError: something that is not a dict; pass ``module.state_dict()``.
        ValueError: a strength outside [0, 1] or for a name that is in neither, an anchor without floating-point
            tensors, or with an entry that is not in ``weights``, has another shape, or is not the same where it
            is complex or of integers (quantised weights; one number may count); tied weights with two strengths or two
            anchors; LoRA's factors with an anchor whose product is not 0; parts of adapters that are no product of two
            (DoRA, LoHa).

    >>> import torch, hyperopt_ftp as hft
    >>> hft.wise({"w": torch.tensor([3.0]), "head": torch.ones(1)}, {"w": torch.tensor([1.0])}, strength=0.25)
    {'w': tensor([2.5000]), 'head': tensor([1.])}
    >>> hft.wise({"q.lora_A": torch.ones(1, 2), "q.lora_B": torch.ones(1, 1)}, "zero", strength=0.25)
    {'q.lora_A': tensor([[1., 1.]]), 'q.lora_B': tensor([[0.7500]])}
    """
    far = some(ends(weights, anchor))
    shares = dict(strength) if isinstance(strength, Mapping) else dict.fromkeys(far, strength)
    unknown = sorted(shares.keys() - far.keys())
    if unknown:
        raise ValueError(f"strength has the names {unknown[:5]}, which have no weights with an anchor (LoRA's B has)")
    for share in shares.values():
        check_number("strength", share, _SHARE)
    check_tied(weights, shares, far)
    mixed = {name: lerped(w, far[name], shares[name]) if name in shares else copied(w) for name, w in weights.items()}
    return as_state_dict(mixed, weights)


@explained()
def learned_wise(
    weights: Weights,
    anchor: Weights | Literal["zero"],
    outer_loss: Callable[[dict[str, Tensor], Any], Tensor],
    batches: Iterable[Any],
    *,
    statistics: Iterable[str] = (),
    strength: float = 0.5,
    strength_lr: float = 1e-2,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """WiSE-FT with a share for each tensor, learned on held-out batches after fine-tuning.

    Weights and anchor are fixed; tied weights have one share. For each batch, Adam moves all shares ``s``::

        s <- clamp(s - strength_lr * AdamDirection(d outer_loss((1 - s) W + s W0) / d s), 0, 1)

    AdaMerging (arXiv 2310.02575, section 3.2) learns coefficients by layer for merging several tasks, by the entropy of
    predictions.

    Args:
        weights, anchor: as in :func:`wise`.
        outer_loss: ``outer_loss(mixed, batch) -> scalar`` on held-out data, such as the loss of
            ``torch.func.functional_call(model.eval(), mixed, (x,))``; with tied weights, ``tie_weights=False``.
        batches: one for each step.
        statistics: names without a derivative, BatchNorm's statistics: ``[name for name, _ in model.named_buffers()]``.
            Their share is the mean of the shares of their module's weights, or of all if it has none.
        strength: first share of the anchor, in [0, 1].
        strength_lr: learning rate of Adam on a share.

    Returns:
        The mixed weights, and the shares by name.

    Raises:
        ValueError: as :func:`wise`; a strength_lr outside its domain; statistics without weights; no batches.
        TypeError: as :func:`wise`; statistics that are one string.

    >>> import torch, hyperopt_ftp as hft
    >>> w, w0 = {"w": torch.tensor([3.0])}, {"w": torch.tensor([1.0])}
    >>> new, shares = hft.learned_wise(w, w0, lambda p, x: ((p["w"] - x) ** 2).sum(), [torch.tensor([1.5])] * 100)
    >>> round(shares["w"].item(), 2), round(new["w"].item(), 1)
    (0.75, 1.5)
    """
    far = detached(some(ends(weights, anchor)))
    check_number("strength", strength, _SHARE)
    check_number("strength_lr", strength_lr, DOMAINS["lr"])
    if isinstance(statistics, str):
        raise TypeError(f"statistics must be a list of names, got the string {statistics!r}")
    statistics, given = set(statistics), weights
    for name in statistics - weights.keys():
        raise ValueError(f"statistics has {name!r}, and weights has no such entry{did_you_mean(name, weights)}")
    weights = detached(weights)
    check_tied(weights, dict.fromkeys(far, 1.0), far)  # both of two are mixed, or none
    same = {name: other for name, other in tied(weights).items() if name in far}
    own = {name: weights[name] for name in far if name not in statistics and name not in same}
    shares = {name: torch.full((), strength, dtype=working(w).dtype, device=w.device) for name, w in own.items()}
    mixing = _mixing(far, shares)
    following = {name: _like(name, list(own)) for name in far if name in statistics and own and name not in same}

    def whole(shares: dict[str, Tensor]) -> dict[str, Tensor]:
        means = {name: torch.stack([shares[other] for other in others]).mean() for name, others in following.items()}
        found = {**shares, **means}
        return found | {name: found[other] for name, other in same.items() if other in found}

    def mixed(shares: dict[str, Tensor]) -> dict[str, Tensor]:
        found = {name: lerped(weights[name], far[name], share) for name, share in shares.items()}
        # A module counts batches in place.
        return {name: found[name] if name in found else w if name in own else copied(w) for name, w in weights.items()}

    def slopes(shares: dict[str, Tensor], batch: Any) -> tuple[dict[str, Tensor], None]:
        if not own:
            return {}, None
        rest = mixed({name: share for name, share in whole(shares).items() if same.get(name, name) in following})

        def outer(p: dict[str, Tensor]) -> Tensor:
            return outer_loss({**rest, **p, **{name: p[other] for name, other in same.items() if other in p}}, batch)

        _, grads, _ = value_and_grad(mixing, zero_loss, outer, own, [None], "strength", {"strength": shares})
        return grads["strength"], None

    def keep(shares: dict[str, Tensor], _: None) -> dict[str, Tensor]:
        return {name: s.clamp(0, 1) for name, s in shares.items()}

    shares = fit_numbers(shares, strength_lr, batches, slopes, keep)
    shares = whole(shares)
    return as_state_dict(mixed(shares), given), shares


def _mixing(anchor: Mapping[str, Tensor], shares: dict[str, Tensor]) -> Optimizer:
    """An optimizer whose step is the mixture, whatever the gradient."""

    def init(params: Any, hparams: Any = None) -> tuple[()]:
        return ()

    def update(grads: Any, state: Any, params: Any, hparams: Any = None) -> tuple[Any, Any]:
        h = shares if hparams is None else hparams["strength"]
        return {name: lerped(w, anchor[name], h[name]) for name, w in params.items()}, state

    return Optimizer(init, update, {"strength": shares}, domains={"strength": _SHARE})


def _like(name: str, learned: list[str]) -> list[str]:
    module = name.rpartition(".")[0]
    return [other for other in learned if other.rpartition(".")[0] == module] or learned
