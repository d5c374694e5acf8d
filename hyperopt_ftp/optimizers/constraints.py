"""Where a tuned hyperparameter moves, and how it is kept inside its domain."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, get_args

import torch
from torch import Tensor

from .. import tree
from ..hparams import Domain, domain_at, first_outside
from ..types import Constraint

MAPS: tuple[str, ...] = get_args(Constraint)


class Constraints:
    """Named maps between a hyperparameter x in its domain and the free value u that the hyper-optimizer moves.

    ``"clip"``: u = x. ``"log"``: x = exp(u). ``"logit"``: x = 1 / (1 + exp(-u)). The hypergradient of u is that of x
    times ``dx/du`` (1, x or x (1 - x)). Every x is then clipped to its domain, and the hypergradient is taken at the
    clipped x.

    Raises:
        ValueError: a path that is not tuned, an unknown map, or one that leads out of the domain.
        TypeError: maps that are not given by path.
    """

    def __init__(
        self, names: tuple[str, ...], given: Mapping[str, Constraint] | None, domains: Mapping[str, Any]
    ) -> None:
        if given is not None and not isinstance(given, Mapping):
            raise TypeError(f"constrain must be a dict by hyperparameter, such as {{'lr': 'log'}}, got {given!r}")
        given = {} if given is None else dict(given)
        unknown = sorted(given.keys() - set(names))
        if unknown:
            raise ValueError(f"constrain names {unknown}, but over tunes {list(names)}")
        self._domains = {name: domain_at(domains, name) for name in names}
        for name, kind in given.items():
            if kind not in MAPS:
                raise ValueError(f"constrain of {name!r} must be one of {', '.join(map(repr, MAPS))}, got {kind!r}")
            for domain in _all(self._domains[name]):
                if kind == "logit" and not (domain.low <= 0 and domain.high >= 1):
                    raise ValueError(f"constrain of {name!r}: 'logit' is for values in (0, 1), its domain is {domain}")
                if kind == "log" and domain.low != 0:
                    raise ValueError(f"constrain of {name!r}: 'log' is for positive values, its domain is {domain}")
        self._kinds = {name: given.get(name, "clip") for name in names}

    def check(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            kind = self._kinds[name]
            if kind == "clip":
                continue
            wrong = [first_outside(x, 0, 1 if kind == "logit" else math.inf) for x in tree.leaves(value)]
            wrong = [x for x in wrong if x is not None]
            if wrong:
                where = "above 0" if kind == "log" else "in (0, 1)"
                raise ValueError(
                    f"constrain of {name!r}: {kind!r} needs a first value {where}, got {wrong[0]:g}; start there, "
                    "or use 'clip'"
                )

    def free(self, values: dict[str, Any]) -> dict[str, Any]:
        inverse = {"clip": lambda x: x, "log": torch.log, "logit": torch.logit}
        return {name: tree.map_tree(inverse[self._kinds[name]], x) for name, x in values.items()}

    def natural(self, free: dict[str, Any]) -> dict[str, Any]:
        maps = {"clip": lambda u: u, "log": _exp, "logit": _sigmoid}
        return {name: _clip(self._domains[name], tree.map_tree(maps[self._kinds[name]], u)) for name, u in free.items()}

    def chain(self, slopes: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
        factor = {"clip": torch.ones_like, "log": lambda x: x, "logit": lambda x: x * (1 - x)}
        return {
            name: tree.map_tree(lambda h, x, n=name: h * factor[self._kinds[n]](x), h, values[name])
            for name, h in slopes.items()
        }


def _exp(u: Tensor) -> Tensor:
    """Positive and finite, so that its logarithm is finite too."""
    return u.exp().clamp(min=torch.finfo(u.dtype).tiny, max=torch.finfo(u.dtype).max)


def _sigmoid(u: Tensor) -> Tensor:
    """In (0, 1) even where rounding would give 0 or 1."""
    return u.sigmoid().clamp(min=torch.finfo(u.dtype).tiny, max=1 - torch.finfo(u.dtype).eps / 2)


def _clip(domains: Any, value: Any) -> Any:
    """``value``, or each part of a tree of hparams, clipped to its domain."""
    if isinstance(domains, Domain):
        return tree.map_tree(domains.clip, value)
    if isinstance(domains, Mapping) and isinstance(value, dict):
        return {key: _clip(domains.get(key), part) for key, part in value.items()}
    return value


def _all(domains: Any) -> list[Domain]:
    if isinstance(domains, Mapping):
        return [domain for part in domains.values() for domain in _all(part)]
    return [domains] if isinstance(domains, Domain) else []
