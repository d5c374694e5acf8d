"""An optimizer around another: its hparams beside the base's, and all that the base says of itself forwarded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain, count
from typing import Any

from .. import tree
from ..hparams import complete, domains_of
from ..types import Optimizer, check_optimizer


def wrapped(
    base: Optimizer,
    own: dict[str, Any],
    init: Callable[[Any, Any, dict[str, Any]], Any],
    update: Callable[[Any, Any, Any, Any, dict[str, Any]], tuple[Any, Any]],
    start: Callable[[Any, dict[str, Any]], dict[str, Any]] | None = None,
    settle: Callable[[dict[str, Any], Any], dict[str, Any]] | None = None,
    inner: Callable[[Any], Any] = lambda state: state.base,
    domains: Mapping[str, Any] | None = None,
) -> Optimizer:
    """``base`` with the hparams ``own`` beside its own.

    Args:
        base: any optimizer whose hparams are a dict. Its domains and ``tunes`` are forwarded.
        own: hparams by name. A name that ``base`` has already is numbered (``"max_norm_2"``); ``init``, ``update`` and
            the others see it without the number.
        init: ``init(params, base's hparams, own hparams) -> state``.
        update: ``update(grads, state, params, base's hparams, own hparams) -> (params, state)``.
        start, settle: as in :class:`~hyperopt_ftp.Optimizer`, for the own hparams alone.
        inner: the state of ``base`` in a state of the result, for its ``settle``.
        domains: of the own hparams, nested as they are; ``None``: those in ``DOMAINS``.

    Raises:
        TypeError: a base that is not pure.
    """
    check_optimizer("base", base)
    names = {name: _free(name, base.hparams) for name in own}
    default = {**base.hparams, **{names[name]: value for name, value in own.items()}}

    def split(hparams: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        h = complete(hparams, default)
        return {name: h[name] for name in base.hparams}, {name: h[called] for name, called in names.items()}

    def joined(bases: Any, owns: dict[str, Any]) -> dict[str, Any]:
        return {**bases, **{names[name]: value for name, value in owns.items()}}

    def init_split(params: Any, hparams: Any = None) -> Any:
        return init(params, *split(hparams))

    def update_split(grads: Any, state: Any, params: Any, hparams: Any = None) -> tuple[Any, Any]:
        return update(grads, state, params, *split(hparams))

    def start_both(params: Any, hparams: Any) -> Any:
        bases, owns = split(hparams)
        bases = base.start(params, bases) if base.start else bases
        return joined(bases, start(params, owns) if start else owns)

    def settle_both(hparams: Any, new_state: Any) -> Any:
        bases, owns = split(hparams)
        bases = base.settle(bases, inner(new_state)) if base.settle else bases
        return joined(bases, settle(owns, new_state) if settle else owns)

    starts = start_both if start or base.start else None
    settles = settle_both if settle or base.settle else None
    own_domains = domains_of(own) if domains is None else domains
    both_domains = {**base.domains, **{names.get(name, name): domain for name, domain in own_domains.items()}}
    return base._replace(
        init=init_split, update=update_split, hparams=default, start=starts, settle=settles, domains=both_domains
    )


def check_no_table(name: str, value: Any) -> None:
    """``ValueError`` for the table of a :func:`per_step` inside, in the place of a number that a rule around reads."""
    shapes = [tuple(x.shape) for x in tree.tensors(value) if x.ndim]
    if shapes:
        raise ValueError(
            f"the {name} of base is a table of the shape {shapes[0]}, and a number is read; per_step goes around: "
            f"per_step(..., {name}=table), with this inside"
        )


def check_goes_on(base: Optimizer, lost: str, instead: str) -> None:
    """``ValueError`` for a base that does not go on from the params that it gets, where these are moved around it."""
    if base.weights_in_state:
        raise ValueError(
            "base goes on from weights in its state, as schedule-free optimizers do, and not from the params that it "
            f"gets: {lost} would be lost; {instead}"
        )


def _free(name: str, taken: Mapping[str, Any]) -> str:
    """``name``, or with the first number from 2 on that makes it another than those that are taken."""
    return next(n for n in chain([name], (f"{name}_{i}" for i in count(2))) if n not in taken)
