"""A number for each parameter that goes linearly from the first layer of a network to the last."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from ..calls import explained, few
from ..hparams import Domain, check_number
from .patterns import matcher, no_match

#: An infinite number has no linear way to another one.
FINITE = Domain(-sys.float_info.max, sys.float_info.max)

#: From the input to the output: a module, a parameter or a glob pattern for each layer, or several of them.
Layers: TypeAlias = Sequence[str | Sequence[str]]


@explained()
def by_depth(names: Iterable[str], layers: Layers, first: float, last: float) -> dict[str, float]:
    """A number for each parameter, linear in the depth of its layer: ``first`` at the input, ``last`` at the output.

    For layer k of L, counted from 1::

        number = first + (last - first) (k - 1) / (L - 1)

    MAPS (arXiv 2511.19878) is a strength that falls to 0: ``by_depth(names, layers, strength, 0.0)``. LiNeS (arXiv
    2410.17146; :func:`lines`) has this form, too.

    Args:
        names: of the parameters, such as ``dict(model.named_parameters())``.
        layers: at least two, from the input to the output. Each is the name of a module (``"blocks.0"``) or parameter,
            a glob pattern, or a list of them.
        first, last: the numbers of the first and of the last layer, finite.

    Returns:
        The numbers by name, without parameters in no layer. Use them as an hparam by path
        (``hft.spd(base, anchor, strength=...)``) if every constrained parameter has one. For the drop-in classes use
        :func:`depth_groups`.

    Raises:
        ValueError: fewer than two layers, a layer that matches nothing, a parameter in two layers, a number that is not
            finite.
        TypeError: layers that are one string or have no order (a set), something that is not a number.

    >>> import hyperopt_ftp as hft
    >>> hft.by_depth(["stem.weight", "blocks.0.weight", "blocks.1.weight", "head.weight"],
    ...              ["stem", "blocks.0", "blocks.1"], first=1.0, last=0.0)
    {'stem.weight': 1.0, 'blocks.0.weight': 0.5, 'blocks.1.weight': 0.0}
    """
    check_number("first", first, FINITE)
    check_number("last", last, FINITE)
    paths, found = list(names), {}
    named = isinstance(layers, Sequence) and not isinstance(layers, str)
    if not named or not all(isinstance(e, str) for layer in layers for e in _entries(layer)):
        raise TypeError(f'layers must be a list of names, such as ["stem", "blocks.0", "blocks.1"], got {layers!r}')
    if len(layers) < 2:
        raise ValueError(f"layers must be at least two, from the input to the output, got {list(layers)}")
    for index, layer in enumerate(layers):
        if not _entries(layer):
            raise ValueError(f"layer {index} (counted from 0) is empty: name what is in it, or leave it out")
        for entry in _entries(layer):
            inside = [path for path in paths if matcher(entry)(path)]
            if not inside:
                raise no_match("the layer", entry, paths)
            twice = [path for path in inside if found.get(path, index) != index]
            if twice:
                raise ValueError(f"layers {found[twice[0]]} and {index} (counted from 0) both have {few(twice)}")
            found.update(dict.fromkeys(inside, index))
    return {path: between(first, last, found[path] / (len(layers) - 1)) for path in paths if path in found}


def between(first: float, last: float, at: float) -> float:
    """Exact at both ends, which ``first + at * (last - first)`` is not."""
    return (1 - at) * first + at * last


def _entries(layer: str | Sequence[str]) -> list[str]:
    """What is no string in it is refused above."""
    return [layer] if isinstance(layer, str) or not isinstance(layer, Sequence) else list(layer)
