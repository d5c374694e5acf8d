"""An optimizer on gradients that something has been done to; its state is the base's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..hparams import Domain, check_zero_d
from ..types import Optimizer
from .leafwise import check_grads
from .wrap import wrapped


def on_gradients(
    base: Optimizer,
    own: dict[str, Any],
    before: Callable[[Any, Any, dict[str, Any]], Any],
    domains: Mapping[str, Domain] | None = None,
) -> Optimizer:
    """``base`` on the gradients ``before(grads, params, own hparams)``; the own hparams are 0-d."""

    def init(params: Any, bases: Any, owns: dict[str, Any]) -> Any:
        return base.init(params, bases)

    def update(grads: Any, state: Any, params: Any, bases: Any, owns: dict[str, Any]) -> tuple[Any, Any]:
        check_grads(grads, params)
        for name, value in owns.items():
            check_zero_d(name, value)
        return base.update(before(grads, params, owns), state, params, bases)

    return wrapped(base, own, init, update, inner=lambda state: state, domains=domains)
