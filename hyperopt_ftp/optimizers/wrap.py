"""An optimizer around another: its hparams beside the base's, and all that the base says of itself forwarded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..hparams import Domain, complete, domains_of
from ..types import Optimizer, check_optimizer

__all__ = ["wrapped"]


def wrapped(
    base: Optimizer,
    own: dict[str, Any],
    init: Callable[[Any, Any, dict[str, Any]], Any],
    update: Callable[[Any, Any, Any, Any, dict[str, Any]], tuple[Any, Any]],
    start: Callable[[Any, dict[str, Any]], dict[str, Any]] | None = None,
    settle: Callable[[dict[str, Any], Any], dict[str, Any]] | None = None,
    inner: Callable[[Any], Any] = lambda state: state.base,
    domains: Mapping[str, Domain] | None = None,
) -> Optimizer:
    """``base`` with the hparams ``own`` beside its own.

    Args:
        base: any optimizer whose hparams are a dict. Its domains and what it tunes stay in force.
        own: hparams by name, which ``base`` must not have.
        init: ``init(params, base's hparams, own hparams) -> state``.
        update: ``update(grads, state, params, base's hparams, own hparams) -> (params, state)``.
        start, settle: of :class:`~hyperopt_ftp.Optimizer`, for the own hparams alone.
        inner: the state of ``base`` in a state of the result, for its ``settle``.
        domains: of the own hparams; ``None``: those that ``DOMAINS`` has.

    Raises:
        TypeError: a base that is not pure.
        ValueError: a name that ``base`` has too.
    """
    check_optimizer("base", base)
    both = sorted(own.keys() & base.hparams.keys())
    if both:
        raise ValueError(f"the optimizer already has the hparams {both}; wrap it only once")
    default = {**base.hparams, **own}

    def split(hparams: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        h = complete(hparams, default)
        return {name: h[name] for name in base.hparams}, {name: h[name] for name in own}

    def init_split(params: Any, hparams: Any = None) -> Any:
        return init(params, *split(hparams))

    def update_split(grads: Any, state: Any, params: Any, hparams: Any = None) -> tuple[Any, Any]:
        return update(grads, state, params, *split(hparams))

    def start_both(params: Any, hparams: Any) -> Any:
        bases, owns = split(hparams)
        bases = base.start(params, bases) if base.start else bases
        return {**bases, **(start(params, owns) if start else owns)}

    def settle_both(hparams: Any, new_state: Any) -> Any:
        bases, owns = split(hparams)
        bases = base.settle(bases, inner(new_state)) if base.settle else bases
        return {**bases, **(settle(owns, new_state) if settle else owns)}

    starts = start_both if start or base.start else None
    settles = settle_both if settle or base.settle else None
    both_domains = {**base.domains, **(domains_of(own) if domains is None else domains)}
    return Optimizer(init_split, update_split, default, starts, settles, both_domains, base.tunes)
