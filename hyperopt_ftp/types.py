"""The central type of the library, an optimizer, and the types that signatures have in common."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.nn import Module

if TYPE_CHECKING:
    from typing_extensions import TypeVar  # defaults come with Python 3.13; type checkers know them before

    # A tree has no type of its own in Python, so what goes in as params is said to come out. Its leaves come out as
    # plain tensors, also where ``nn.Parameter`` went in.
    TreeT = TypeVar("TreeT", default=Any)  #: any pytree of floating-point tensors (a dict of names is usual)
    StateT = TypeVar("StateT", default=Any)  #: a pytree of tensors that belongs to one optimizer
    StateT_co = TypeVar("StateT_co", covariant=True, default=Any)
else:
    from typing import TypeVar

    TreeT, StateT, StateT_co = TypeVar("TreeT"), TypeVar("StateT"), TypeVar("StateT_co", covariant=True)

__all__ = [
    "AdjustLR",
    "Anchor",
    "CheckpointEvery",
    "Compile",
    "Constraint",
    "Device",
    "Excludes",
    "Field",
    "HParam",
    "HParams",
    "Norm",
    "NotFinite",
    "Number",
    "Offload",
    "Optimizer",
    "PaperOrExact",
    "Params",
    "Solver",
    "State",
    "StateT",
    "TreeT",
    "check_optimizer",
]

Params: TypeAlias = Any  #: any pytree of floating-point tensors, where no result has its type
State: TypeAlias = Any  #: a pytree of tensors that belongs to one optimizer, whichever that is
HParams: TypeAlias = (
    Any  #: a pytree of tensors, 0-d where the rule does not say otherwise; level n's are level n+1's params
)

Number: TypeAlias = float | Tensor  #: a number, or a 0-d tensor
#: A number for all layers, or a tree of them in the structure of the params: one for each.
HParam: TypeAlias = Number | Mapping[str, Any] | list[Any] | tuple[Any, ...]

Norm: TypeAlias = Literal["mars", "l2"]  #: rows in L1, or the whole tensor in L2
PaperOrExact: TypeAlias = Literal["paper", "exact"]  #: of a learned radius or strength
Constraint: TypeAlias = Literal["clip", "log", "logit"]  #: how a tuned hyperparameter stays in its domain
Solver: TypeAlias = Literal["neumann", "cg", "dense", "identity"]  #: of :class:`~hyperopt_ftp.Implicit`
#: What :class:`~hyperopt_ftp.Unroll` keeps of its steps; ``None``, its default, lets it choose.
CheckpointEvery: TypeAlias = int | Literal["sqrt", "log", False]
Offload: TypeAlias = bool | Literal["disk"]  #: where it keeps points: on the CPU if true
#: How :func:`~hyperopt_ftp.muon` scales its learning rate with the shape of a matrix.
AdjustLR: TypeAlias = Literal["original", "match_rms_adamw"]
#: Whether steps are compiled: by inductor, or by another of torch.compile's backends, by name.
Compile: TypeAlias = bool | str
NotFinite: TypeAlias = Literal["error", "skip"]  #: what :func:`~hyperopt_ftp.bilevel` does then
Field: TypeAlias = Literal["distance", "radius", "clipped", "omega"]  #: what is measured of a layer

#: Of the drop-in classes: first values, zero, tensors by name, or the path of a ``.safetensors`` file.
Anchor: TypeAlias = Mapping[str, Tensor] | Literal["zero"] | str | os.PathLike[str] | None
#: Of the drop-in classes: patterns of names, tensors or modules, one or several.
Excludes: TypeAlias = str | Tensor | Module | Iterable[str | Tensor | Module] | None
Device: TypeAlias = torch.device | str | int | None


class InitFn(Protocol[StateT_co]):
    def __call__(self, params: Params, hparams: HParams | None = None) -> StateT_co: ...


class UpdateFn(Protocol[StateT]):
    def __call__(
        self, grads: Params, state: StateT, params: TreeT, hparams: HParams | None = None
    ) -> tuple[TreeT, StateT]: ...


class StartFn(Protocol):
    def __call__(self, params: Params, hparams: HParams) -> HParams: ...


class SettleFn(Protocol):
    def __call__(self, hparams: HParams, new_state: State) -> HParams: ...


class PartsFn(Protocol):
    def __call__(self, params: Params) -> dict[str, str]: ...


class Unbounded(Mapping[str, Any]):
    """No domains. Unlike an empty dict it cannot be changed, unlike an empty mappingproxy it can be copied."""

    def __getitem__(self, key: str) -> Any:
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


if TYPE_CHECKING:

    class Optimizer(NamedTuple, Generic[StateT]):
        """The class below with the type of its state, which no NamedTuple has when Python 3.10 runs it."""

        init: InitFn[StateT]
        update: UpdateFn[StateT]
        hparams: HParams
        start: StartFn | None = None
        settle: SettleFn | None = None
        domains: Mapping[str, Any] = Unbounded()
        tunes: tuple[str, ...] = ()
        parts: PartsFn | None = None
        weights_in_state: bool = False
        maximize: bool = False

else:

    class Optimizer(NamedTuple):
        """An optimizer as pure, differentiable functions.

        ``state = init(params)`` and ``params, state = update(grads, state, params)``. Both take a last argument
        ``hparams`` (``None`` means ``self.hparams``): differentiate, vmap or jvp through it like through any argument.
        Nothing is changed in place, nothing is detached, and no Python branch depends on the value of a tensor.

        Attributes:
            init: ``init(params, hparams=None) -> state``.
            update: ``update(grads, state, params, hparams=None) -> (params, state)``.
            hparams: pytree of 0-d tensors; the defaults of the last argument.
            start: optional ``start(params, hparams) -> hparams``; first values of tuned hyperparameters that depend on
                the parameters (the first radius of :func:`~hyperopt_ftp.projected`).
            settle: optional ``settle(hparams, new_state) -> hparams``; a tuner calls it AFTER the update. It stores the
                result, and takes the next hypergradient at it.
            domains: by hparam name, the :class:`~hyperopt_ftp.hparams.Domain` in which a tuner keeps its values. They
                are nested as the hparams are. An hparam that is absent is not bounded.
            tunes: paths into ``hparams`` of those that the optimizer itself tunes; only ``init`` reads them.
            parts: optional ``parts(params) -> {path of a parameter: path into hparams}``: where each parameter's
                hparams are (``"head"``, ``"base.head"``), if there are different rules for different parts.
            weights_in_state: whether ``update`` continues from weights in its state (schedule-free) instead of the
                params that it gets. Changes of the params in between are then lost.
            maximize: whether ``update`` goes up the gradient. A rule around an anchor that reads gradients refuses
                that, and a tuner must go up, too.

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
        parts: PartsFn | None = None
        weights_in_state: bool = False
        maximize: bool = False


def check_optimizer(name: str, value: Any) -> None:
    """``TypeError`` unless ``value`` has what an :class:`Optimizer` has."""
    if hasattr(value, "init") and hasattr(value, "update") and hasattr(value, "hparams"):
        return
    title = getattr(value, "__name__", None) if callable(value) else None
    ours = isinstance(value, type) or str(getattr(value, "__module__", "")).startswith("hyperopt_ftp.")
    got = f"an object of the class {type(value).__name__}"
    if title:
        got = f"{title} itself: call it" if ours else f"the function {title}"
    raise TypeError(
        f"{name} must be a pure optimizer such as hft.adam(lr=1e-3), got {got} (the classes of torch.optim, and those "
        "of this package like them, are not pure)"
    )
