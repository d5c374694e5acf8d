"""The one concept of the library: an optimizer is a pair of pure functions and a tree of hyperparameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

__all__ = ["HParams", "Optimizer", "Params", "State", "check_optimizer"]

Params = Any  #: any pytree of floating-point tensors (a dict of names is usual)
State = Any  #: a pytree of tensors that belongs to one optimizer
HParams = Any  #: a pytree of tensors, 0-d where the rule does not say otherwise; level n's are level n+1's params


class InitFn(Protocol):
    def __call__(self, params: Params, hparams: HParams | None = None) -> State: ...


class UpdateFn(Protocol):
    def __call__(
        self, grads: Params, state: State, params: Params, hparams: HParams | None = None
    ) -> tuple[Params, State]: ...


class StartFn(Protocol):
    def __call__(self, params: Params, hparams: HParams) -> HParams: ...


class SettleFn(Protocol):
    def __call__(self, hparams: HParams, new_state: State) -> HParams: ...


class Unbounded(Mapping[str, Any]):
    """No domains. Unlike an empty dict it cannot be changed, unlike an empty mappingproxy it can be copied."""

    def __getitem__(self, key: str) -> Any:
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


class Optimizer(NamedTuple):
    """An optimizer as pure, differentiable functions.

    ``state = init(params)`` and ``params, state = update(grads, state, params)``. Both take a last argument
    ``hparams`` (``None`` means ``self.hparams``): differentiate, vmap or jvp through it like through any argument.
    Nothing is changed in place, nothing is detached, and no Python branch depends on the value of a tensor.

    Attributes:
        init: ``init(params, hparams=None) -> state``.
        update: ``update(grads, state, params, hparams=None) -> (params, state)``.
        hparams: pytree of 0-d tensors; the defaults of the last argument.
        start: optional ``start(params, hparams) -> hparams``; first values of hyperparameters that depend on the
            parameters (the first radius of :func:`~hyperopt_ftp.projected`). Read by an optimizer that tunes this one.
        settle: optional ``settle(hparams, new_state) -> hparams``; applied by a tuner AFTER the update. Its result is
            stored, and it is the point where the next pullback linearises.
        domains: by hparam name, the :class:`~hyperopt_ftp.hparams.Domain` in which a tuner keeps its values; an
            optimizer that holds others nests theirs as its hparams are nested. What is absent is bounded by nothing.
        tunes: paths into ``hparams`` of those that the optimizer itself tunes: ``init`` alone reads them.

    >>> import torch, hyperopt_ftp as hft
    >>> opt = hft.sgd(lr=0.5)
    >>> params = {"w": torch.ones(2)}
    >>> params, state = opt.update({"w": torch.ones(2)}, opt.init(params), params)
    >>> params
    {'w': tensor([0.5000, 0.5000])}
    """

    init: InitFn
    update: UpdateFn
    hparams: HParams
    start: StartFn | None = None
    settle: SettleFn | None = None
    domains: Mapping[str, Any] = Unbounded()
    tunes: tuple[str, ...] = ()


def check_optimizer(name: str, value: Any) -> None:
    """``TypeError`` unless ``value`` has what an :class:`Optimizer` has."""
    if all(hasattr(value, part) for part in ("init", "update", "hparams")):
        return
    title = getattr(value, "__name__", None)
    got = f"{title} itself: call it" if title else f"an object of the class {type(value).__name__}"
    raise TypeError(
        f"{name} must be a pure optimizer such as hft.adam(lr=1e-3), got {got} (the classes of torch.optim, and those "
        "of this package like them, are not pure)"
    )
