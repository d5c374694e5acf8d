"""Decoupled weight decay for any optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from .. import tree
from ..calls import explained, shown
from ..hparams import to_tensors
from ..types import HParam, Optimizer, StateT
from .leafwise import check_grads, check_params, for_each
from .patterns import matcher, no_match
from .wrap import check_goes_on, check_no_table, wrapped


@explained("decayed(base, weight_decay=0.1, exclude='*.bias')")
def decayed(
    base: Optimizer[StateT], weight_decay: HParam, exclude: str | Iterable[str] | Callable[[str], bool] = ()
) -> Optimizer[StateT]:
    """Decoupled weight decay (arXiv 1711.05101) before each step of ``base``.

    With weights ``W`` and the ``lr`` of ``base``, for each parameter that is not excluded::

        W <- W - lr * weight_decay * W
        W <- the step of base from there, with the gradient g at the old W

    :func:`adamw` is ``decayed(adam(weight_decay=0), weight_decay)``.

    Args:
        base: any optimizer with an ``lr``, except schedule-free ones, which have a ``weight_decay``. Put
            :func:`scheduled` around the result, not inside.
        weight_decay: number, 0-d tensor, or tree of them (one for each parameter), >= 0; the hparam ``"weight_decay"``,
            or ``"weight_decay_2"`` if ``base`` has one already.
        exclude: parameters that do not decay: paths, parents of paths or glob patterns (``("*.bias", "norm")``), or a
            function ``path -> bool``.

    Raises:
        ValueError: a weight_decay that is negative or NaN; a base without lr, with a table of it, or schedule-free; an
            entry of ``exclude`` that matches no parameter (at ``init``).
        TypeError: an ``exclude`` that is neither strings nor a function.

    A parameter without a gradient (``None``) does not decay. 16-bit weights are computed in float32, and rounded once.
    Put :func:`ftp` around the result, not inside: inside it would keep no master copy of 16-bit weights.

    >>> import torch, hyperopt_ftp as hft
    >>> opt = hft.decayed(hft.sgd(lr=0.1), weight_decay=0.5, exclude="b")
    >>> params = {"w": torch.ones(2), "b": torch.ones(2)}
    >>> opt.update({"w": torch.zeros(2), "b": torch.zeros(2)}, opt.init(params), params)[0]
    {'w': tensor([0.9500, 0.9500]), 'b': tensor([1., 1.])}
    """
    own = to_tensors(weight_decay=weight_decay)
    entries = [] if callable(exclude) else _entries(exclude)
    tests = [matcher(entry) for entry in entries]
    excluded = exclude if callable(exclude) else lambda path: any(fits(path) for fits in tests)

    def init(params: Any, bases: Any, owns: dict[str, Any]) -> Any:
        check_params(params)
        paths = list(tree.by_path(params))
        for entry, fits in zip(entries, tests, strict=True):
            if not any(map(fits, paths)):
                raise no_match("exclude: the entry", entry, paths)
        return base.init(tree.map_tree(tree.working, params), bases)

    def update(grads: Any, state: Any, params: Any, bases: Any, owns: dict[str, Any]) -> tuple[Any, Any]:
        leaves, rebuild = tree.flatten(params)
        rows = zip(
            tree.by_path(params).items(),
            check_grads(grads, params),
            for_each(bases["lr"], rebuild),
            for_each(owns["weight_decay"], rebuild),
            strict=True,
        )
        before = []
        for (path, w), g, lr, decay in rows:
            w = tree.working(w)
            before.append(w if g is None or excluded(path) else (w - lr * decay * w).to(w.dtype))
        moved, state = base.update(grads, state, rebuild(before), bases)
        new = [w.to(old.dtype) for w, old in zip(rebuild.aligned(moved), leaves, strict=True)]
        return rebuild(new), state

    result = wrapped(base, own, init, update, inner=lambda state: state)
    if "lr" not in base.hparams:
        raise ValueError(
            f"decayed reads the lr of base, which has none, its hparams are {sorted(base.hparams)}; put it around the "
            "optimizer that has one: inside hyper, or around each optimizer of a partition"
        )
    check_no_table("lr", base.hparams["lr"])
    check_goes_on(base, "weight decay around it", "use its own, weight_decay=...")
    return result


def _entries(exclude: Any) -> list[str]:
    entries = [exclude] if isinstance(exclude, str) or not isinstance(exclude, Iterable) else list(exclude)
    for entry in entries:
        if not isinstance(entry, str):
            raise TypeError(
                "exclude must hold paths or glob patterns, such as '*.bias', or be a function path -> bool, got "
                f"{shown(entry)}"
            )
    return entries
