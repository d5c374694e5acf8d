"""What every optimizer of the package shares: a rule for one tensor, applied to each leaf in working precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from .. import tree
from ..devices import two_devices
from ..hparams import is_scalar

#: What to give in place of a module, or of what it holds.
OF_A_MODULE = "of a module give dict(net.named_parameters()), with a loss by hft.of_module(net, ...)"

#: How a pure optimizer is called, for those who expect a class of torch.optim.
NO_PARAMS = (
    "a pure optimizer gets no params here, but in init(params) and update(grads, state, params); FTPAdamW and FTPSGD "
    "are classes like torch.optim's"
)

#: Entries up to which a tensor is computed together with others: an operation's own cost outweighs a copy there.
_SMALL = 2048

_PLAIN = (Tensor, torch.nn.Parameter)


def leafwise(
    rule: Callable[..., tuple[Tensor, ...]],
    params: Any,
    grads: Any,
    moments: Sequence[Any],
    hparams: Sequence[Any],
    whole: bool = False,
    join_from: int = 2,
) -> tuple[Any, ...]:
    """``rule(w, g, *moments, *hparams) -> (w, *moments)`` for every leaf that has a gradient.

    A leaf whose gradient is ``None`` does not change, nor do its moments. 16-bit weights are computed in float32, with
    moments in float32. An hparam is one 0-d tensor for all leaves, or a tree of the parameters' structure (see
    :func:`for_each`). ``join_from`` or more small leaves with the same dtypes, device and hparams are joined, unless
    the rule needs them ``whole``.
    """
    leaves, rebuild = tree.flatten(params)
    own = [_aligned_grads(grads, leaves, rebuild, params), *(rebuild.aligned(m, "state") for m in moments)]
    if not leaves:
        return (params, *moments)
    rows = list(zip(leaves, *own, strict=True))
    shared = [x if is_scalar(x) else for_each(x, rebuild) for x in hparams]
    of_each = [x for x in shared if isinstance(x, list)]
    found: list[Any] = [None] * len(rows)
    for places in _together(rows, of_each, whole or len(rows) < join_from):
        if rows[places[0]][1] is None:
            found[places[0]] = (rows[places[0]][0], *rows[places[0]][2:])
            continue
        numbers: list[Any] = [x[places[0]] if isinstance(x, list) else x for x in shared] if of_each else shared
        mine = [rows[i] for i in places]
        joined = len(mine) >= join_from
        try:
            new = _as_one(rule, mine, numbers) if joined else [_one(rule, row, numbers) for row in mine]
        except RuntimeError as error:
            mixed = two_devices(error, params, gradient=grads, state=list(moments), hparams=list(hparams))
            raise mixed from mixed.__cause__
        for i, values in zip(places, new, strict=True):
            found[i] = values
    return tuple(rebuild(column) for column in zip(*found, strict=True))


def _one(
    rule: Callable[..., tuple[Tensor, ...]], row: Sequence[Tensor], numbers: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    p, g, *moments = row
    w = tree.working(p)
    try:
        moved = rule(w, _cast(g, w.dtype), *moments, *numbers)
    except RuntimeError as error:
        if "must match the size" in str(error):  # torch's word for shapes that do not go together
            raise _misfit(p, moments) from error
        raise
    found: list[Tensor] = []
    for x, old in zip(moved, (p, *moments), strict=True):
        if x.shape != old.shape:
            raise _misfit(p, moments, moved)
        x = _cast(x, w.dtype if found else p.dtype)
        # What a rule returns may be what it was given: what comes back can be saved, or changed in place, by itself.
        found.append(x.clone() if any(x is other for other in (*row, *found)) else x)
    return (*found,)


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if x.dtype == dtype else x.to(dtype)  # which takes as long as an addition where there is nothing to do


def _misfit(p: Tensor, moments: Sequence[Tensor], found: Sequence[Tensor] = ()) -> ValueError:
    was, now = ([tuple(x.shape) for x in row] for row in ((p, *moments), found))
    became = f"; the rule makes {now[0]} and {now[1:]} of them" if found else ""
    return ValueError(
        f"a parameter of the shape {was[0]} has a state of the shapes {was[1:]}{became}: the state is of other "
        "parameters (init(params) makes one for these), or a rule of your own changes shapes"
    )


def _as_one(
    rule: Callable[..., tuple[Tensor, ...]], rows: Sequence[Sequence[Tensor]], numbers: Sequence[Tensor]
) -> list[tuple[Tensor, ...]]:
    """:func:`_one` of each row, from tensors in which those of all rows stand one after the other."""
    whole = [torch.cat([x.flatten() for x in column]) for column in zip(*rows, strict=True)]
    shapes = [row[0].shape for row in rows]
    sizes = [shape.numel() for shape in shapes]
    # Copies, not views: results that share memory could not be saved, or changed in place, one by one.
    split: Any = torch.split_with_sizes_copy  # whose stub has forgotten the result
    parts = [split(x, sizes) for x in _one(rule, whole, numbers)]
    columns = [[x if len(shape) == 1 else x.reshape(shape) for x, shape in zip(p, shapes, strict=True)] for p in parts]
    return list(zip(*columns, strict=True))


def _together(rows: Sequence[Sequence[Any]], numbers: Sequence[list[Tensor]], apart: bool) -> list[list[int]]:
    """Places of the rows, those together that can be computed as one tensor. A compiler fuses the rule by itself."""
    if apart or torch.compiler.is_compiling():
        return [[i] for i in range(len(rows))]
    groups: dict[Any, list[int]] = {}
    for i, row in enumerate(rows):
        own = [column[i] for column in numbers]
        kind: Any = i
        if row[1] is not None and _packs(row) and not any(x.ndim for x in own):
            kind = (*((x.dtype, x.device) for x in row), *map(id, own))
        groups.setdefault(kind, []).append(i)
    return list(groups.values())


def _packs(row: Sequence[Tensor]) -> bool:
    """Whether a small tensor, its gradient and moments can be parts of larger ones: plain, alike, without gaps."""
    shape = row[0].shape
    return shape.numel() <= _SMALL and all(type(x) in _PLAIN and x.shape == shape and x.is_contiguous() for x in row)


def for_each(hparam: Any, like: tree.Structure) -> list[Tensor]:
    """The hparam of each leaf of some params of the structure ``like``, which may not make a weight larger than it is.

    Raises:
        ValueError: a shape or a structure that does not fit; what fits is in the text.
    """
    if isinstance(hparam, Tensor) and hparam.ndim == 0:
        return [hparam] * len(like.leaves)
    try:
        values = like.aligned(hparam, "hyperparameter")
    except ValueError as error:
        if isinstance(hparam, Tensor):
            raise ValueError(f"a hyperparameter has the shape {tuple(hparam.shape)}; {_FITTING}") from None
        hint = "a rule with weights of its own is an hft.Optimizer(init, update, hparams)"
        raise ValueError(f"{error}; {hint}") from None
    for x, w in zip(values, like.leaves, strict=True):
        pairs = zip(x.shape[::-1], w.shape[::-1], strict=False)
        if x.shape != w.shape and (x.ndim > w.ndim or any(a not in (1, b) for a, b in pairs)):
            raise ValueError(
                f"a hyperparameter has the shape {tuple(x.shape)}, its parameter {tuple(w.shape)}; {_FITTING}"
            )
    return values


_FITTING = (
    "give a 0-d tensor, or a tree in the structure of the parameters, of tensors that are 0-d or broadcast to the "
    "shape of their parameter"
)


def zeros(params: Any) -> Any:
    """A tree of zeros in working precision."""
    return tree.map_tree(lambda p: torch.zeros_like(tree.working(p)), params)


def check_lr(lr: Any) -> None:
    """``TypeError`` for parameters, which a class of torch.optim takes where a pure optimizer takes lr."""
    for x in tree.leaves(lr):
        if isinstance(x, (Iterator, torch.nn.Module)) or (isinstance(x, torch.nn.Parameter) and x.ndim):
            raise TypeError(f"lr must be a number or a 0-d floating-point tensor, got {type(lr).__name__}; {NO_PARAMS}")


def check_params(params: Any) -> None:
    """``params`` are floating-point tensors that have values, or stand for some while a program is traced."""
    if all(isinstance(x, Tensor) and x.is_floating_point() and not x.is_meta for x in tree.leaves(params)):
        return  # without names, which take as long as a small training step
    for name, leaf in tree.named(params):
        if leaf is None:
            raise TypeError(f"params must be a pytree of tensors, but {name!r} is None; leave it out")
        if not isinstance(leaf, Tensor):
            if not name:
                raise TypeError(f"params must be a pytree of tensors, got a {type(leaf).__name__}; {OF_A_MODULE}")
            raise TypeError(f"params must be a pytree of tensors, but {name!r} is a {type(leaf).__name__}")
        if not leaf.is_floating_point():
            hint = "pass torch.view_as_real of it, and view_as_complex in the loss"
            hint = hint if leaf.is_complex() else f"{OF_A_MODULE}: a state_dict has buffers too"
            raise TypeError(
                f"params must be floating-point (float16, bfloat16, float32, float64), but {name!r} is {leaf.dtype}; "
                + hint
            )
        if leaf.device.type == "meta" and not isinstance(leaf, FakeTensor):
            raise ValueError(f"parameter {name!r} has no values: it is on the meta device")


def advanced(step: Any, grads: Any, params: Any) -> Any:
    """Number of updates after this one.

    One number for all leaves. From the first gradient that is ``None`` on, a tree of numbers, since a leaf without a
    gradient makes no update.
    """
    if isinstance(step, Tensor) and not any(g is None for g in tree.leaves(grads)):
        return step + 1
    leaves, rebuild = tree.flatten(params)
    values = rebuild.aligned(grads, "grads")
    steps = [step] * len(leaves) if isinstance(step, Tensor) else rebuild.aligned(step, "the count of a state")
    if torch.compiler.is_compiling():
        return rebuild([n if g is None else n + 1 for n, g in zip(steps, values, strict=True)])
    new = {id(n): n + 1 for n in steps}  # leaves that share a count go on sharing it, and are computed together
    return rebuild([n if g is None else new[id(n)] for n, g in zip(steps, values, strict=True)])


def check_grads(grads: Any, params: Any) -> list[Any]:
    """Leaves of ``grads`` in the order of those of ``params``: ``None``, or a dense tensor of its parameter's shape."""
    leaves, structure = tree.flatten(params)
    return _aligned_grads(grads, leaves, structure, params)


def _aligned_grads(grads: Any, leaves: list[Any], structure: tree.Structure, params: Any) -> list[Any]:
    values = structure.aligned(grads, "grads")
    for g, w in zip(values, leaves, strict=True):
        if g is None:
            continue
        if not isinstance(g, Tensor) or g.shape != w.shape or g.layout is not torch.strided:
            raise _wrong_gradient(values, params)
    return values


def _wrong_gradient(values: list[Any], params: Any) -> Exception:
    for g, (name, w) in zip(values, tree.named(params), strict=True):
        if g is None:
            continue
        if not isinstance(g, Tensor):
            return TypeError(f"grads must be a pytree of tensors, but {name!r} is a {type(g).__name__}")
        if g.layout != torch.strided:
            return TypeError(
                f"the gradient of {name!r} is sparse ({g.layout}); give its to_dense(), or an embedding with "
                "sparse=False"
            )
        if g.shape != w.shape:
            return ValueError(
                f"the gradient of {name!r} has the shape {tuple(g.shape)}, its parameter {tuple(w.shape)}"
            )
    raise AssertionError


def each_gradient(function: Callable[[Tensor], Tensor], grads: Any) -> Any:
    return tree.map_tree(lambda g: None if g is None else function(g), grads)


def check_state(kind: type, state: Any) -> None:
    """``TypeError`` unless ``state`` is of the class that an optimizer's ``init`` returns."""
    if not isinstance(state, kind):
        raise TypeError(
            f"state must be the {kind.__name__} that init or update returned, got {type(state).__name__}; the order is "
            "update(grads, state, params, hparams)"
        )


def no_steps() -> Tensor:
    """Number of updates done; a tensor, so that a compiled or vmapped update does not depend on a Python number."""
    return torch.zeros((), dtype=torch.int64, device="cpu")
