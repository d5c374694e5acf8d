"""Where a tuned hyperparameter moves, and how it is kept inside its domain."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .. import tree
from ..hparams import DOMAINS, Domain, known

__all__ = ["Constraints"]

MAPS = ("clip", "log", "logit")


class Constraints:
    """Named maps between a hyperparameter x in its domain and the free value u that the hyper-optimizer moves.

    ``"clip"`` (default): u = x, and x is the nearest value of the domain. ``"log"``: x = exp(u), for positive ones such
    as learning rates and eps: a step of u is a relative step of x. ``"logit"``: x = 1 / (1 + exp(-u)), for those in
    (0, 1) such as betas. By the chain rule the hypergradient of u is that of x times ``dx/du`` (1, x or x (1 - x)), and
    that of a clipped value is taken at the clipped one.
    """

    def __init__(self, names: tuple[str, ...], given: Mapping[str, str] | None) -> None:
        if given is not None and not isinstance(given, Mapping):
            raise TypeError(f"constrain must be a dict by hyperparameter, such as {{'lr': 'log'}}, got {given!r}")
        given = {} if given is None else dict(given)
        unknown = sorted(given.keys() - set(names))
        if unknown:
            raise ValueError(f"constrain names {unknown}, but over tunes {list(names)}")
        for name, kind in given.items():
            domain = domain_of(name)
            if kind not in MAPS:
                raise ValueError(f"constrain of {name!r} must be one of {', '.join(map(repr, MAPS))}, got {kind!r}")
            if kind == "logit" and domain is not None and domain.high != 1:
                raise ValueError(f"constrain of {name!r}: 'logit' is for values in (0, 1), its domain is {domain}")
            if kind == "log" and domain is not None and domain.low != 0:
                raise ValueError(f"constrain of {name!r}: 'log' is for positive values, its domain is {domain}")
        self._kinds = {name: given.get(name, "clip") for name in names}

    def check(self, values: dict[str, Any]) -> None:
        """Whether the maps can take the first values, where these are known."""
        for name, value in values.items():
            kind = self._kinds[name]
            least, most = 0.0, {"log": math.inf, "logit": 1.0}.get(kind, math.nan)
            numbers = [known(x) for x in tree.leaves(value)] if kind != "clip" else []
            wrong = [x for x in numbers if x is not None and not least < x < most]
            if wrong:
                where = "above 0" if kind == "log" else "in (0, 1)"
                raise ValueError(
                    f"constrain of {name!r}: {kind!r} needs a first value {where}, got {wrong[0]:g}; start there, "
                    "or use 'clip'"
                )

    def free(self, values: dict[str, Any]) -> dict[str, Any]:
        """x as u."""
        inverse = {"clip": lambda x: x, "log": torch.log, "logit": torch.logit}
        return {name: tree.map_tree(inverse[self._kinds[name]], x) for name, x in values.items()}

    def natural(self, free: dict[str, Any]) -> dict[str, Any]:
        """u as x."""
        return {name: tree.map_tree(lambda u, n=name: self._natural(n, u), x) for name, x in free.items()}

    def chain(self, slopes: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
        """Hypergradients of u from those of x."""
        factor = {"clip": torch.ones_like, "log": lambda x: x, "logit": lambda x: x * (1 - x)}
        return {
            name: tree.map_tree(lambda h, x, n=name: h * factor[self._kinds[n]](x), h, values[name])
            for name, h in slopes.items()
        }

    def _natural(self, name: str, u: Tensor) -> Tensor:
        kind, domain = self._kinds[name], domain_of(name)
        if kind == "clip":
            return u if domain is None else domain.clip(u)
        return u.exp() if kind == "log" else u.sigmoid()


def domain_of(path: str) -> Domain | None:
    """The domain of the hyperparameter that a path leads to; ``None`` for names of somebody's own."""
    return next((DOMAINS[part] for part in reversed(path.split(".")) if part in DOMAINS), None)
