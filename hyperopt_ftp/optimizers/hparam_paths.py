"""Names of hyperparameters inside a tree of them: ``"lr"``, ``"by.lr"``, ``"betas.0"``, ``"radius.fc.weight"``."""

from __future__ import annotations

from typing import Any

from ..calls import did_you_mean, few, shown
from ..tree import entry, key_at, named, replaced


def normalise(over: Any, hparams: Any) -> tuple[str, ...]:
    """``over`` as a tuple of paths into ``hparams``; a ``ValueError`` names what exists when one does not."""
    names = (over,) if isinstance(over, str) else tuple(over) if isinstance(over, (tuple, list)) else ()
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"over must name at least one hyperparameter of {few(_leaves(hparams))}, got {shown(over)}")
    for name in names:
        try:
            entry(hparams, name)
        except KeyError:
            leaves = _leaves(hparams)
            inside = [path for path in leaves if path.endswith(f".{name}")]
            meant = f"; did you mean {inside[0]!r}?" if inside else did_you_mean(name, [*leaves, *hparams])
            raise ValueError(f"over names {name!r}, but the hyperparameters are {few(leaves)}{meant}") from None
    nested = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :] if a != b and overlap(hparams, a, b)]
    if nested or len(set(names)) < len(names):
        raise ValueError(f"over names a hyperparameter twice: {nested or names}")
    return names


def select(hparams: Any, over: tuple[str, ...]) -> dict[str, Any]:
    return {name: entry(hparams, name) for name in over}


def merge(hparams: Any, values: dict[str, Any]) -> Any:
    """``hparams`` with the entries at the paths of ``values`` replaced."""
    for name, value in values.items():
        hparams = replaced(hparams, name, value)
    return hparams


def overlap(hparams: Any, a: str, b: str) -> bool:
    return all(x == y for x, y in zip(_keys(hparams, a), _keys(hparams, b), strict=False))


def _leaves(hparams: Any) -> list[str]:
    return [path for path, _ in named(hparams)]


def _keys(values: Any, path: str) -> list[Any]:
    keys = []
    while path:
        key, path = key_at(values, path)
        keys, values = [*keys, key], values[key]
    return keys
