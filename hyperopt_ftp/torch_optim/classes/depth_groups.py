"""Parameter groups whose numbers go linearly from the first layer of a network to the last."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.nn import Module

from ...calls import explained, few
from ...hparams import check_number
from ...optimizers.depth import FINITE, Layers, between, by_depth


@explained()
def depth_groups(
    named_parameters: Iterable[tuple[str, Tensor]],
    layers: Layers,
    rest: Mapping[str, Any] | None = None,
    **numbers: tuple[float, float],
) -> list[dict[str, Any]]:
    """Parameter groups, one for each layer, with numbers that are linear in its depth (:func:`by_depth`).

    A strength that falls to 0 is MAPS (arXiv 2511.19878: ``strength (1 - (k - 1) / (L - 1))`` for layer k of L). The
    paper uses it with SPD, over the modules of a vision-language-action model. It works for every number that groups
    may override: ``strength`` of :class:`SPD`, :class:`L2SP` and :class:`CautiousDecay`, ``radius`` of :class:`MARSSP`,
    ``lr`` of any optimizer.

    Args:
        named_parameters: ``model.named_parameters()``.
        layers: as in :func:`by_depth`.
        rest: options of one more group, for parameters in no layer: ``{"constrained": False}`` for a new head. If it is
            not given, every parameter must be in a layer.
        numbers: for each option of the groups its values at the first and the last layer, finite:
            ``strength=(1.0, 0.0)``.

    Returns:
        Groups for an optimizer, in the order of the layers. Give them to the base, and the base to the class.

    Raises:
        ValueError: as :func:`by_depth`; parameters in no layer and no ``rest``.
        TypeError: no numbers, or not a pair of them; ``params`` among the options; parameters without names.

    >>> import torch, hyperopt_ftp as hft
    >>> from torch.nn import Linear, ReLU, Sequential
    >>> model = Sequential(Linear(4, 4), ReLU(), Linear(4, 4), Linear(4, 2))
    >>> groups = hft.depth_groups(model.named_parameters(), ["0", "2"], {"constrained": False}, strength=(1.0, 0.0))
    >>> opt = hft.SPD(torch.optim.AdamW(groups, lr=1e-3))
    >>> [(group["strength"], group["constrained"]) for group in opt.param_groups]
    [(1.0, [True, True]), (0.0, [True, True]), (1.0, [False, False])]
    """
    if not numbers:
        raise TypeError("depth_groups needs a number to set: depth_groups(..., strength=(1.0, 0.0))")
    if "params" in numbers or "params" in (rest or {}):
        raise TypeError("params is no option: which parameters are in a group is said by layers")
    for name, ends in numbers.items():
        if not isinstance(ends, (tuple, list)) or len(ends) != 2:
            raise TypeError(f"{name} must be a pair (at the first layer, at the last layer), got {ends!r}")
        for end in ends:
            check_number(name, end, FINITE)
    pairs: list[Any] = [None] if isinstance(named_parameters, Module) else list(named_parameters)
    if not all(isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs):
        raise TypeError("depth_groups needs names and parameters: pass model.named_parameters()")
    params = dict(pairs)
    depth = by_depth(params, layers, 0.0, 1.0)
    left = [pair for pair in pairs if pair[0] not in depth]
    if left and rest is None:
        raise ValueError(
            f"{few([name for name, _ in left])} are in no layer: add them to one, or give the options of their group, "
            "such as rest={'constrained': False}"
        )
    groups = []
    for at in sorted(set(depth.values())):
        inside = [(name, params[name]) for name in depth if depth[name] == at]
        ends = {option: between(first, last, at) for option, (first, last) in numbers.items()}
        groups.append({"params": inside, **ends})
    if left:
        groups.append({"params": left, **(rest or {})})
    return groups
