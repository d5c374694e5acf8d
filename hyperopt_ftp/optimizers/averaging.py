"""The average of the weights over training, and where to find it in a state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from .. import tree
from ..calls import explained, few
from ..hparams import Domain, check_zero_d, to_tensors
from ..types import Number, Optimizer, State, TreeT
from .leafwise import check_params, check_state, no_steps
from .wrap import wrapped


class AveragedState(NamedTuple):
    """State of :func:`averaged`."""

    step: Any  # shape (), int64: updates done, where these are counted, else ()
    average: Any  # tree like params, in working precision
    base: Any


@explained("averaged(adam(lr=1e-3), decay=0.999)")
def averaged(base: Optimizer, decay: Number | None = 0.999) -> Optimizer[AveragedState]:
    """Keep the average of the weights. The training itself is that of ``base``.

    With ``A``, which starts at the params of ``init``, and t counting from 1, after each step of ``base``::

        A <- decay * A + (1 - decay) * W       the exponential moving average
        A <- A + (W - A) / t                   decay=None: the mean of all W so far (SWA, arXiv 1803.05407)

    :func:`averages` reads ``A``.

    Args:
        base: any optimizer.
        decay: number or 0-d tensor in [0, 1], the hparam ``"decay"``; ``None`` for the mean.

    Raises:
        ValueError: decay outside [0, 1].

    Equals :class:`torch.optim.swa_utils.AveragedModel`, updated after each step: with ``decay=None`` its default, else
    ``get_ema_multi_avg_fn(decay)``, updated once before the first step, too. The average of 16-bit weights is float32.
    Buffers, such as BatchNorm's statistics, are not params.

    >>> import torch, hyperopt_ftp as hft
    >>> opt = hft.averaged(hft.sgd(lr=1.0), decay=None)
    >>> w = torch.zeros(1); state = opt.init(w)
    >>> for _ in range(3):
    ...     w, state = opt.update(-torch.ones(1), state, w)
    >>> w, hft.averages(w, state)
    (tensor([3.]), tensor([2.]))
    """
    domains = {"decay": Domain(0.0, 1.0)}
    own = {} if decay is None else to_tensors(domains, decay=decay)

    def init(params: Any, bases: Any, owns: dict[str, Any]) -> AveragedState:
        check_params(params)
        average = tree.map_tree(lambda w: tree.working(w).clone(), params)
        return AveragedState(() if owns else no_steps(), average, base.init(params, bases))

    def update(
        grads: Any, state: AveragedState, params: Any, bases: Any, owns: dict[str, Any]
    ) -> tuple[Any, AveragedState]:
        check_state(AveragedState, state)
        params, inner = base.update(grads, state.base, params, bases)
        step: Any = () if owns else state.step + 1
        if owns:
            check_zero_d("decay", owns["decay"])

        def nearer(a: Tensor, w: Tensor) -> Tensor:
            away = w.to(a.dtype) - a
            return a + ((1 - owns["decay"]) * away if owns else away / step).to(a.dtype)

        return params, AveragedState(step, tree.map_tree(nearer, state.average, params), inner)

    return wrapped(base, own, init, update, domains=domains if own else {})


@explained()
def averages(params: TreeT, state: State) -> TreeT:
    """The averaged weights of a state: ``params``, with the average in place of each leaf that has one.

    It finds the field ``average`` in the state, and in the states of optimizers inside it (fields ``base`` and
    ``parts``, to any depth). So :func:`averaged` may be inside :func:`projected`, :func:`hyper` or a :func:`partition`.
    A :class:`PureOptimizer` has it as ``opt.averages()``.

    Args:
        params: the present params. They give the structure, the dtypes, and the leaves without an average.
        state: of the optimizer that made them.

    Raises:
        ValueError: no average, more than one for a parameter, or one of something that is not in ``params``.

    >>> import torch, hyperopt_ftp as hft
    >>> opt = hft.partition({"mean": hft.averaged(hft.sgd(lr=1.0), decay=0.5), "last": hft.sgd(lr=1.0)},
    ...                     {"a": "mean", "b": "last"})
    >>> params = {"a": torch.zeros(1), "b": torch.zeros(1)}
    >>> grads = {"a": -torch.ones(1), "b": -torch.ones(1)}
    >>> params, state = opt.update(grads, opt.init(params), params)
    >>> hft.averages(params, state)
    {'a': tensor([0.5000]), 'b': tensor([1.])}
    """
    weights = tree.by_path(params)
    found: dict[str, Tensor] = {}
    for average in _kept(state):
        for path, a in tree.by_path(average).items():
            if path in found:
                raise ValueError(
                    f"the state keeps more than one average of {path!r}; pass the inner state whose average is meant, "
                    "such as state.base"
                )
            found[path] = a
    if not found:
        raise ValueError(f"the state, a {type(state).__name__}, keeps no average; put hft.averaged(...) around")
    strange = [path for path, a in found.items() if path not in weights or weights[path].shape != a.shape]
    if strange:
        raise ValueError(
            f"the state keeps averages of {few(strange)}, which are not among the params, or have another shape there; "
            f"the params are {few(list(weights))}"
        )
    return tree.put(params, {path: a.to(weights[path].dtype) for path, a in found.items()})


def _kept(state: Any) -> Iterator[Any]:
    """The averages in a state. What :func:`hyper` keeps of the step before, and of its tuner, is not looked at."""
    if isinstance(state, Mapping):
        for part in state.values():
            yield from _kept(part)
    for name in ("average", "base", "parts"):
        if name in getattr(state, "_fields", ()):
            inner = getattr(state, name)
            yield from [inner] if name == "average" else _kept(inner)
