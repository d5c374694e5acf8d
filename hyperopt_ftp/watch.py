"""What an anchored optimizer does to each layer: its distance from the anchor, its radius, how much is clipped."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from .calls import check_count, explained
from .dtensors import whole
from .torch_optim.drop_in import DropIn
from .tree import working
from .types import Field

#: What :func:`measure` gives for a layer.
FIELDS: tuple[str, ...] = get_args(Field)

Measured = dict[Any, dict[str, float]]

#: Share of clipped rows from which the ball decides how far a layer goes.
HELD = 0.9


class Watch:
    """The handle that :func:`watch` returns.

    Attributes:
        held: by name, the number of steps for which at least nine of ten rows of a layer have been clipped.
    """

    def __init__(self) -> None:
        self.held: dict[Any, int] = {}
        self._since: dict[Any, int] = {}
        self._handle: RemovableHandle | None = None

    def remove(self) -> None:
        """Stop watching."""
        assert self._handle is not None
        self._handle.remove()

    def _note(self, step: int, measured: Measured) -> None:
        self.held = {}
        for name, layer in measured.items():
            if layer.get("clipped", 0.0) >= HELD:
                self.held[name] = step - self._since.setdefault(name, step)
            else:
                self._since.pop(name, None)


@explained()
@torch.no_grad()
def measure(optimizer: torch.optim.Optimizer) -> Measured:
    """What the last step did to each constrained parameter, by name (or index).

    Args:
        optimizer: one of the drop-in classes, also wrapped by Accelerate or timm's Lookahead.

    Returns:
        For each parameter that has made a step a dict of Python floats: ``"distance"``, ``||W - W0||_2``. With a radius
        also ``"radius"``, in units of row norm, and ``"clipped"``, the share of rows that the last step scaled down.
        For DiGraP also ``"omega"``. They are fetched in one transfer for each device and dtype.

    Raises:
        TypeError: an optimizer of another package.

    >>> import torch, hyperopt_ftp as hft
    >>> w = torch.nn.Parameter(torch.zeros(2, 2))
    >>> opt = hft.MARSSP(torch.optim.SGD([("w", w)], lr=1.0), radius=1.0)
    >>> w.grad = torch.tensor([[-3.0, 0.0], [0.0, -0.5]])
    >>> opt.step()
    >>> {name: round(value, 3) for name, value in hft.measure(opt)["w"].items()}
    {'distance': 1.118, 'radius': 1.0, 'clipped': 0.5}
    """
    found: dict[Any, dict[str, Tensor]] = {}
    for name, p, state, w0 in of_package("measure", optimizer).initialized():
        d = working(p.detach())
        d = d - w0.to(d) if w0.numel() else d
        layer = {"distance": torch.linalg.vector_norm(d)}
        if "radius" in state:
            radius, over = state["radius"], whole(state["row_norm"]) > state["radius"]
            share = over.sum() / max(over.numel(), 1)
            layer |= {"radius": radius, "clipped": share.where(~radius.isnan(), torch.nan)}
        if "omega" in state:
            layer["omega"] = state["omega"]
        found[name] = layer
    flat = [whole(value).double() for layer in found.values() for value in layer.values()]
    values = iter(torch.stack([x.to(flat[0].device) for x in flat]).tolist() if flat else ())  # in one transfer
    return {name: {field: next(values) for field in layer} for name, layer in found.items()}


@explained()
def watch(
    optimizer: torch.optim.Optimizer,
    to: str | os.PathLike[str] | Callable[[int, Measured], Any] | Any,
    every: int = 1,
    first: int = 0,
) -> Watch:
    """Write the result of :func:`measure` after every ``every`` steps.

    A step that GradScaler skips does not count. If several processes train, call it in each: all of them measure, and
    the first one writes.

    Args:
        optimizer: as in :func:`measure`.
        to: the path of a CSV file (a row for each step and layer, appended), a TensorBoard ``SummaryWriter`` (anything
            with ``add_scalar``; tags ``radius/NAME``), or a function of the step and of what was measured.
        every: steps between two measurements, >= 1. A measurement waits for the device. If a fused step obeys a
            GradScaler, every step waits.
        first: number of steps that an earlier run has done, >= 0.

    Returns:
        A :class:`Watch`. Its ``remove()`` stops watching, and :func:`describe` takes its ``held``. Copies and pickles
        of the optimizer are not watched.

    Raises:
        TypeError: an optimizer of another package, or a ``to`` of another kind.
        ValueError: ``every`` below 1 or ``first`` below 0, a path in no folder, an existing file that is no such CSV.

    >>> import torch, hyperopt_ftp as hft
    >>> w = torch.nn.Parameter(torch.zeros(2, 2))
    >>> opt, seen = hft.FTPAdamW([("w", w)], lr=0.1), []
    >>> handle = hft.watch(opt, lambda step, layers: seen.append((step, sorted(layers["w"]))), every=2)
    >>> for _ in range(4):
    ...     opt.zero_grad()
    ...     (w - 1).square().sum().backward()
    ...     opt.step()
    >>> seen[1]
    (4, ['clipped', 'distance', 'radius'])
    """
    watched = of_package("watch", optimizer)
    check_count("every", every, "steps")
    check_count("first", first, "steps", least=0)
    write, done, seen = _writer(to), [first], Watch()

    def after(*_: Any) -> None:
        overflow = getattr(watched, "found_inf", None)  # a fused step that skips itself
        if overflow is not None and overflow.item():
            return
        done[0] += 1
        if done[0] % every == 0:
            measured = measure(watched)
            seen._note(done[0], measured)
            if _is_first_process():
                write(done[0], measured)

    seen._handle = watched.register_step_post_hook(after)
    return seen


def of_package(caller: str, optimizer: Any) -> DropIn:
    """The optimizer of this package that was given, or that a wrapper holds."""
    found = optimizer
    while found is not None and not isinstance(found, DropIn):
        found = getattr(found, "optimizer", None) or getattr(found, "_base_optimizer", None)
    if found is None:
        raise TypeError(f"{caller} needs a class of the package, such as FTPAdamW, got {type(optimizer).__name__}")
    return found


def _is_first_process() -> bool:
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def _writer(to: Any) -> Callable[[int, Measured], Any]:
    if isinstance(to, (str, os.PathLike)):
        return _csv(Path(to))
    if hasattr(to, "add_scalar"):
        return lambda step, layers: _scalars(to, step, layers)
    if callable(to):
        return to
    raise TypeError(f"to must be the path of a CSV file, a SummaryWriter or a function, got {type(to).__name__}")


def _csv(path: Path) -> Callable[[int, Measured], None]:
    header = ["step", "layer", *FIELDS]
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent} for {path.name}; make it first")
    if path.exists():
        with path.open(newline="") as file:
            there = next(csv.reader(file), header)
        if there != header:
            raise ValueError(f"{path} exists and its first line is not {','.join(header)}; choose another file")
    cut = [path.exists() and not path.read_bytes().endswith(b"\n")]  # by the end of an earlier run

    def write(step: int, layers: Measured) -> None:
        with path.open("a", newline="") as file:
            rows = csv.writer(file)
            if file.tell() == 0:
                rows.writerow(header)
            elif cut[0]:
                rows.writerow([])
            cut[0] = False
            for name, layer in layers.items():
                rows.writerow([step, name, *(format(layer[f], ".6g") if f in layer else "" for f in FIELDS)])

    return write


def _scalars(writer: Any, step: int, layers: Mapping[Any, Mapping[str, float]]) -> None:
    for name, layer in layers.items():
        for field, value in layer.items():
            writer.add_scalar(f"{field}/{name}", value, step)
