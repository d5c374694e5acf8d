"""Names of hyperparameters inside a tree of them: ``"lr"``, ``"by.lr"``, ``"betas.0"``, ``"radius.fc.weight"``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...calls import did_you_mean, shown
from ...tree import entry, key_at, named, replaced


def normalise(over: Any, hparams: Any) -> tuple[str, ...]:
    """``over`` as a tuple of paths into ``hparams``; a ``ValueError`` names what exists when one does not."""
    names = (over,) if isinstance(over, str) else tuple(over) if isinstance(over, (tuple, list)) else ()
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"over must name at least one hyperparameter of {_names(hparams)}, got {shown(over)}")
    for name in names:
        try:
            entry(hparams, name)
        except KeyError:
            raise ValueError(f"over names {name!r}, but {_there(hparams, name)}{_meant(hparams, name)}") from None
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
    return all(x == y for x, y in zip(_walk(hparams, a)[0], _walk(hparams, b)[0], strict=False))


def _walk(tree: Any, path: str) -> tuple[list[Any], Any]:
    keys = []
    while path:
        try:
            key, path = key_at(tree, path)
        except KeyError:
            break
        keys, tree = [*keys, key], tree[key]
    return keys, tree


def _meant(hparams: Any, name: str) -> str:
    leaves = [path for path, _ in named(hparams)]
    inside = [path for path in leaves if path.endswith(f".{name}")]
    if inside:
        return f"; did you mean {inside[0]!r}?"
    return did_you_mean(name, [*leaves, *(hparams if isinstance(hparams, Mapping) else ())])


def _there(hparams: Any, path: str) -> str:
    keys, tree = _walk(hparams, path)
    if not keys:
        return f"the hyperparameters are {_names(hparams)}"
    begin = ".".join(map(str, keys))
    inside = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, (tuple, list)) else []
    return f"{begin!r} has {[f'{begin}.{name}' for name in inside] or 'no parts'}"


def _names(hparams: Any, prefix: str = "") -> list[str]:
    names = []
    for key, value in hparams.items() if isinstance(hparams, dict) else ():
        inner = _names(value, f"{prefix}{key}.") if key in ("base", "by") else []
        names += inner or [f"{prefix}{key}"]
    return names
