"""Different optimizers for parts of the parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from .. import tree
from ..calls import did_you_mean, explained, few, shown
from ..hparams import complete
from ..types import Optimizer, check_optimizer
from .leafwise import check_grads, check_params, check_state
from .patterns import matcher, no_match

#: ``path -> label``, or labels by path, parent or glob pattern: a dict, nested or not, or any tree like the parameters.
Labels: TypeAlias = Callable[[str], str] | Mapping[str, Any] | Sequence[Any]

#: Names beside the hparams, where a training loss has its own and ``over`` finds the start.
_TAKEN = ("loss", "params", "batches")


class PartitionState(NamedTuple):
    """State of :func:`partition`."""

    parts: dict[str, Any]  # by label: the state of its optimizer


@explained('partition({"head": adamw(lr=1e-3), "body": sgd(lr=1e-2)}, {"head.*": "head", "*": "body"})')
def partition(optimizers: Mapping[str, Optimizer[Any]], labels: Labels) -> Optimizer[PartitionState]:
    """Each parameter is updated by the optimizer that its label names.

    With ``label`` of a parameter's path::

        W, s <- optimizers[label].update(g, s, W, hparams[label])     on all parameters of one label together

    Each optimizer gets its parameters as a flat dict by path, ``{"head.weight": ...}``. So an anchor, or an hparam that
    is a tree, is by these paths inside a part as well.

    Args:
        optimizers: by label. Labels must not contain dots.
        labels: a function ``path -> label``, or a dict ``{pattern: label}``. A path joins the keys of a leaf by dots. A
            pattern is a path, a parent of paths (``"head"``), or a glob pattern (``"*.bias"``, where ``*`` matches dots
            too). The first pattern that matches gives the label: ``{"head.*": "fast", "*": "slow"}``. Keys of a nested
            dict are joined to paths, so a tree of labels like the parameters works too.

    Returns:
        An optimizer with hparams ``{label: optimizers[label].hparams}``: ``over="head.lr"`` tunes one of them.
        Gradients that are ``None`` are passed on.

    Raises:
        ValueError: no optimizers; a label with a dot, or without an optimizer. When it is called, also: a parameter
            without a label, a pattern that gives no label (nothing matches, or earlier patterns match first), an
            optimizer without a parameter.
        TypeError: an optimizer that is not pure, labels that are not strings.

    A rule that reads ``lr`` (``l2sp``, ``decayed``) has to go around the optimizer of a part. ``projected``, ``ftp``
    and ``clipped`` may also go around the whole partition.

    >>> import torch, hyperopt_ftp as hft
    >>> opt = hft.partition({"fast": hft.sgd(lr=1.0), "slow": hft.sgd(lr=0.1)}, {"head": "fast", "*": "slow"})
    >>> params = {"head": {"w": torch.ones(2)}, "body": {"w": torch.ones(2)}}
    >>> opt.update(params, opt.init(params), params)[0]
    {'head': {'w': tensor([0., 0.])}, 'body': {'w': tensor([0.9000, 0.9000])}}
    >>> sorted(opt.hparams)
    ['fast', 'slow']
    """
    _check(optimizers)
    optimizers = dict(optimizers)
    labels_of = _by_function(labels) if callable(labels) else _by_entries(labels, optimizers)
    default = {label: opt.hparams for label, opt in optimizers.items()}

    def parted(params: Any) -> dict[str, dict[str, Any]]:
        leaves = tree.by_path(params)
        parts: dict[str, dict[str, Any]] = {label: {} for label in optimizers}
        for (path, leaf), label in zip(leaves.items(), labels_of(list(leaves)), strict=True):
            if label not in parts:
                raise ValueError(f"the label of {path!r} is {shown(label)}, {_unknown(label, parts)}")
            parts[label][path] = leaf
        unused = [label for label, part in parts.items() if not part]
        if unused:
            raise ValueError(f"no parameter has the label {unused[0]!r}; the parameters are {few(list(leaves))}")
        return parts

    def init(params: Any, hparams: Any = None) -> PartitionState:
        check_params(params)
        h = complete(hparams, default)
        return PartitionState({label: optimizers[label].init(part, h[label]) for label, part in parted(params).items()})

    def update(grads: Any, state: PartitionState, params: Any, hparams: Any = None) -> tuple[Any, PartitionState]:
        check_state(PartitionState, state)
        h = complete(hparams, default)
        given = dict(zip(tree.by_path(params), check_grads(grads, params), strict=True))
        new, states = dict(given), {}
        for label, part in parted(params).items():
            own = {path: given[path] for path in part}
            moved, states[label] = optimizers[label].update(own, state.parts[label], part, h[label])
            new.update(moved)
        return tree.flatten(params)[1](list(new.values())), PartitionState(states)

    def start(params: Any, hparams: Any) -> Any:
        first = dict(hparams)
        for label, part in parted(params).items():
            begin = optimizers[label].start
            first[label] = begin(part, hparams[label]) if begin else hparams[label]
        return first

    def settle(hparams: Any, new_state: PartitionState) -> Any:
        settles = {label: opt.settle for label, opt in optimizers.items() if opt.settle}
        return {**hparams, **{label: f(hparams[label], new_state.parts[label]) for label, f in settles.items()}}

    def parts(params: Any) -> dict[str, str]:
        found = {}
        for label, part in parted(params).items():
            inside = optimizers[label].parts
            found |= {p: f"{label}.{x}" for p, x in inside(part).items()} if inside else dict.fromkeys(part, label)
        return found

    return Optimizer(
        init,
        update,
        default,
        start if any(opt.start for opt in optimizers.values()) else None,
        settle if any(opt.settle for opt in optimizers.values()) else None,
        {label: opt.domains for label, opt in optimizers.items()},
        tuple(f"{label}.{name}" for label, opt in optimizers.items() for name in opt.tunes),
        parts,
        any(opt.weights_in_state for opt in optimizers.values()),
        any(opt.maximize for opt in optimizers.values()),
    )


def _check(optimizers: Any) -> None:
    if not isinstance(optimizers, Mapping) or not optimizers:
        raise ValueError(f"optimizers must be a dict of at least one optimizer by label, got {shown(optimizers)}")
    for label, opt in optimizers.items():
        if not isinstance(label, str) or not label or "." in label or label in _TAKEN:
            raise ValueError(
                f"a label must be a string without a dot, since over='label.lr' names an hparam of its part, and none "
                f"of {', '.join(map(repr, _TAKEN))}, which are named beside the hparams; got {shown(label)}"
            )
        check_optimizer(f"the optimizer of {label!r}", opt)


def _by_function(labels: Callable[[str], str]) -> Callable[[list[str]], list[str]]:
    return lambda paths: [labels(path) for path in paths]


def _by_entries(labels: Any, known: Mapping[str, Any]) -> Callable[[list[str]], list[str]]:
    entries = tree.named(dict(labels) if isinstance(labels, Mapping) else labels)
    for entry, label in entries:
        if not isinstance(label, str):
            raise TypeError(
                "labels must be a function path -> label, or a tree of labels such as {'head.*': 'fast'}, but the "
                f"entry {entry!r} is {shown(label)}"
            )
        if label not in known:
            raise ValueError(f"the label of the entry {entry!r} is {label!r}, {_unknown(label, known)}")
    tests = [matcher(entry) for entry, _ in entries]

    def of(paths: list[str]) -> list[str]:
        first = [next((i for i, fits in enumerate(tests) if fits(path)), None) for path in paths]
        for path, i in zip(paths, first, strict=True):
            if i is None:
                names = [entry for entry, _ in entries]
                hint = "add one, such as '*'"
                if path.isdigit():
                    hint += "; params without names are counted: for names give model.named_parameters()"
                raise ValueError(f"no entry of labels fits {path!r}, they are {few(names)}; {hint}")
        for i, (entry, _) in enumerate(entries):
            if i not in first and any(map(tests[i], paths)):
                raise ValueError(
                    f"labels: the entry {entry!r} gives no parameter its label, earlier ones take all that it fits; "
                    "put it before them"
                )
            if i not in first:
                raise no_match("labels: the entry", entry, paths)
        return [entries[i][1] for i in first if i is not None]

    return of


def _unknown(label: Any, known: Mapping[str, Any]) -> str:
    return f"but the optimizers are {list(known)}{did_you_mean(label, known)}"
