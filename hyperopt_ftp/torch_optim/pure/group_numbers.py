"""Hparams as entries of the groups of a ``torch.optim`` optimizer: names, checks, values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from ... import tree
from ...hparams import Domain, as_tensor, check_number, check_parts, concrete, domain_at
from ..checks.arguments import check_group_options, check_no_gradient

_ANY = Domain(-math.inf, math.inf)  # of what has no domain
_ROUNDING = 1e-12  # torch's LinearLR down to 0 may end at -1e-18


def domain_or_any(domains: Any, path: str) -> Domain:
    found = domain_at(domains, path)
    return found if isinstance(found, Domain) else _ANY


def check_groups(groups: Sequence[dict[str, Any]], known: Sequence[set[str]]) -> None:
    """Raise for a name in a group that is new and has no effect, or one by which a scheduler has lost a table.

    Args:
        groups: of the optimizer.
        known: names of each group that were seen before; new ones are put in.
    """
    for group, names in zip(groups, known, strict=True):
        if group.keys() <= names:
            continue
        check_group_options(group, [name for name in group if name in names])  # in its order
        lr = group.get("lr")
        if "initial_lr" in group and isinstance(lr, Tensor) and lr.ndim:
            raise ValueError(
                "a scheduler of torch has written one number over the table of lr: make the optimizer again, and leave "
                "out the scheduler"
            )
        names |= group.keys()


def checked(key: str, value: Any, domain: Domain, is_tuned: bool = False) -> Any:
    """What stands in a group as tensors, numbers checked against the domain; a tensor that was tuned may be NaN."""
    check_parts(key, value, domain)
    if isinstance(value, (tuple, list)):
        return tuple(checked(key, x, domain._replace(parts=()), is_tuned) for x in value)
    if isinstance(value, Mapping):
        return {name: checked(f"{key}.{name}", x, domain, is_tuned) for name, x in value.items()}
    if isinstance(value, Tensor):
        check_no_gradient("PureOptimizer", {key: value})
        # Schedulers write into these. One on an accelerator is not checked: each step would wait for its value.
        if not is_tuned and value.ndim == 0 and value.is_floating_point() and value.is_cpu and concrete(value):
            number = value.item()
            is_rounding = domain.low - _ROUNDING <= number < domain.low
            check_number(key, domain.low if is_rounding else number, domain)
        return value
    check_number(key, value, domain)
    return as_tensor(value)


def flat(hparams: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in hparams.items():
        if isinstance(value, dict):
            yield from flat(value, (*path, str(key)))
        else:
            yield (*path, str(key)), value


def rebuilt(like: Any, values: Mapping[tuple[str, ...], Any], path: tuple[str, ...] = ()) -> Any:
    """A tree like ``like`` from its entries."""
    return {
        key: rebuilt(value, values, (*path, str(key))) if isinstance(value, dict) else values[(*path, str(key))]
        for key, value in like.items()
    }


def owner(path: str, parts: list[str]) -> int:
    """Which of the parts, themselves paths, an hparam belongs to; the first where it belongs to none."""
    return next((i for i, part in enumerate(parts) if path.startswith(f"{part}.")), 0)


def names_of(paths: list[tuple[str, ...]], part: str) -> dict[str, tuple[str, ...]]:
    """Paths by the keys of a group: below its part and without ``"base"``, or whole where another has that name."""
    whole = {".".join(path): path for path in paths}
    keys: dict[str, tuple[str, ...]] = {}
    for name, path in whole.items():
        short = without_base(path).removeprefix(f"{without_base(part.split('.'))}.")
        keys[name if not short or short in keys or short in whole else short] = path
    return keys


def without_base(path: Sequence[str]) -> str:
    return ".".join(x for x in path if x != "base")


def is_tuned(path: str, tunes: tuple[str, ...]) -> bool:
    return any(path == t or path.startswith(f"{t}.") or t.startswith(f"{path}.") for t in tunes)


def tuned_in(hparams: Any, state: Any) -> Any:
    """``hparams`` with the values that are tuned, from the states of the optimizers that tune."""
    if hasattr(state, "tuned"):
        base = hparams["base"]
        for path, value in state.tuned.items():
            base = tree.replaced(base, path, value)
        return {**hparams, "base": tuned_in(base, state.base), "by": tuned_in(hparams["by"], state.by)}
    if hasattr(state, "parts"):
        return {**hparams, **{label: tuned_in(hparams[label], part) for label, part in state.parts.items()}}
    return tuned_in(hparams, state.base) if hasattr(state, "base") else hparams


def copied(value: Any) -> Any:
    return tree.map_tree(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, value)


def equal(a: Any, b: Any) -> bool:
    pairs = zip(tree.leaves(a), tree.leaves(b), strict=True)
    return all(bool(((x == y) | ((x != x) & (y != y))).all()) for x, y in pairs)


def as_number(value: Any) -> Any:
    return tree.map_tree(lambda x: x.tolist() if isinstance(x, Tensor) else x, value)
