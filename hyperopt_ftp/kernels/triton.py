"""Launches of the Triton execution: the fused step of all layers in at most six launches, without a host sync.

Order ("radius first"): ``partials`` (<g, c> / n by tile), ``radii`` (Adam on the radii), ``move`` (the base's move, and
the projection of rows that fit a tile), ``long_norms`` and ``finish`` (the projection of longer rows, where there are
any), ``clip``. Where the dtypes of the anchors differ, all that once for each dtype.

Full-size traffic of a step with AdamW, by tile (the compile tests count it in the IR):

=============  =============================================  ==================
launch         loads                                          stores
=============  =============================================  ==================
``partials``   g, c
``move``       W, g, m, v, W0 (16-bit weights: and c)         m, v, c, W
``finish``     W, W0 (16-bit weights: c, W0)                  W
=============  =============================================  ==================

amsgrad loads and stores max v too; SGD has b, or nothing, for m and v. Unconstrained layers load no W0 and store no c,
by predicate.

Imports triton when it is called. Runs on CPU tensors under ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from .layers import PLAIN, SGD, AdamW, Amp, Ball, Layers, check, choose, working_dtype

#: Elements that the rows of an aligned layer are a multiple of: 16 bytes in every dtype.
ALIGNMENT = 16

#: Tables and spares that are kept at most. Gradients often take turns between a few addresses.
KEPT = 64

_tables: OrderedDict[Hashable, Tensor] = OrderedDict()
# A CUDA graph copies its tables again at each replay: from pinned memory, which cannot be allocated during capture.
_spares: OrderedDict[int, Tensor] = OrderedDict()
# What graphs read, with the storage of weights that they write: without those no graph can be replayed.
_captured: list[tuple[StorageWeakRef, Tensor]] = []


def step_(layers: Layers, base: AdamW | SGD, ball: Ball, amp: Amp = PLAIN) -> None:
    """A whole FTP step, in place."""
    for run in [_Run(choose(layers, which), ball, base, amp) for which in by_anchor_dtype(layers)]:
        run.find_radii()
        run.move()


def radii_(layers: Layers, ball: Ball, amp: Amp = PLAIN) -> Tensor:
    """The radii's half of a step, before a base of another kind moves the weights.

    Advances the radii's moments and their steps; returns the new radii, not yet clipped, shape (layers,); 0 for an
    unconstrained layer.
    """
    run = _Run(layers, ball, None, amp)
    run.find_radii()
    return run.packed


def project_(layers: Layers, packed: Tensor, ball: Ball) -> None:
    """The other half, after the base's step: c, n, the clipped radii and the projected weights."""
    for which in by_anchor_dtype(layers):
        theirs = packed if len(which) == len(packed) else torch.stack([packed[i] for i in which])
        _Run(choose(layers, which), ball, None, packed=theirs).move()


class _Run:
    """One call: its tables, scratch memory, and all arguments of its kernels by name."""

    def __init__(
        self, layers: Layers, ball: Ball, base: AdamW | SGD | None, amp: Amp = PLAIN, packed: Tensor | None = None
    ) -> None:
        from . import triton_kernels as kernels

        weight, count = layers.weights[0], len(layers.weights)
        real, device = working_dtype(weight), weight.device
        anchor, deviation = (next((x.dtype for x in c if x.numel()), real) for c in (layers.anchors, layers.deviations))
        check(layers, base)
        self.kernels, self.real, self.device, self.weight = kernels, real, device, weight
        self.packed = torch.empty(count, dtype=real, device=device) if packed is None else packed

        addresses = _addresses(layers, base)
        shapes = _shapes(layers, addresses, base, ball.norm == "l2")
        self.layout = layout = _layout(shapes)
        rows = tuple((*a, s.rows, s.cols, *at) for a, s, at in zip(addresses, shapes, layout.at, strict=True))
        place = (device, torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0)

        numbers: dict[str, Any] = dict.fromkeys(
            ("lr", "beta1", "beta2", "eps", "weight_decay", "momentum", "dampening"), 0.0
        )
        numbers |= {"radius_lr": ball.radius_lr, "kappa": ball.kappa, **({} if base is None else base._asdict())}
        lr = numbers["lr"]
        on_device = isinstance(lr, Tensor) and lr.device == device  # one of the CPU is read: nothing waits
        numbers["lr"] = 0.0 if on_device else lr
        types = {"T": real, "W_T": weight.dtype, "G_T": layers.grads[0].dtype, "W0_T": anchor, "C_T": deviation}
        self.arguments: dict[str, Any] = {
            "layers": self._kept((place, rows), lambda: torch.tensor(rows)),
            "tiles": self._kept((place, shapes), lambda: layout.tiles),
            "sums": torch.empty(len(layout.tiles), dtype=real, device=device),
            "numbers": torch.empty(count, kernels.NUMBERS.value, dtype=real, device=device),
            "packed": self.packed,
            "lr_tensor": lr if on_device else None,
            "grad_scale": amp.grad_scale,
            "found_inf": amp.found_inf,
            "MAXIMIZE": amp.maximize,
            "EXACT": ball.exact,
            "L2": ball.norm == "l2",
            "RULE": getattr(kernels, _rule(layers, base)).value,
            **{name: float(value) for name, value in numbers.items()},
            **{name: getattr(kernels.tl, str(dtype).removeprefix("torch.")) for name, dtype in types.items()},
        }

    def find_radii(self) -> None:
        self._launch("partials", self.layout.held)
        self._launch("radii")

    def move(self) -> None:
        self._launch("move", 0)
        self._launch("long_norms", self.layout.long)
        self._launch("finish", self.layout.long)
        self._launch("clip")

    def _launch(self, name: str, first: int | None = None) -> None:
        """A program for each tile from ``first`` on; ``None``: one for each layer."""
        programs = len(self.packed) if first is None else len(self.layout.tiles) - first
        if programs == 0:
            return
        kernel, given = getattr(self.kernels, name), {**self.arguments, "first": first}
        # float64 takes twice the registers. Where to fuse into fma is said in the kernels, so that W' - W0 and W0 + s c
        # come out the same in each of them; to name it also keeps triton from warning that its default will change.
        warps = 16 if self.real == torch.float64 else 8
        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            kernel[(programs,)](
                **{argument: given[argument] for argument in kernel.arg_names}, num_warps=warps, enable_fp_fusion=False
            )

    def _send(self, table: Tensor) -> Tensor:
        """A table to the device, without waiting for it."""
        if self.device.type != "cuda":
            return table
        size = table.numel() * table.element_size()
        if torch.cuda.is_current_stream_capturing():
            if size not in _spares:
                raise RuntimeError("a step must run before one is captured with tables of this size")
            pinned = _spares.pop(size).view(table.dtype).view(table.shape).copy_(table)
            _hold(self.weight, pinned)
        else:
            pinned = table.pin_memory()
            _recent(_spares, size, lambda: torch.empty(size, dtype=torch.uint8, pin_memory=True))
        return pinned.to(self.device, non_blocking=True)

    def _kept(self, key: Hashable, table: Callable[[], Tensor]) -> Tensor:
        """A table that depends on ``key`` alone, on the device."""

        def make() -> Tensor:
            return self._send(table())

        capturing = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
        # What a graph fills is there after a replay only, so it is not kept for others.
        found = make() if capturing and key not in _tables else _recent(_tables, key, make)
        if capturing:
            _hold(self.weight, found)  # replays read it, whatever is dropped from the tables
        return found


def by_anchor_dtype(layers: Layers) -> list[list[int]]:
    """Positions of layers whose anchors have one dtype; those without an anchor go with the first."""
    kinds = [w0.dtype if w0.numel() else None for w0 in layers.anchors]
    first = next(filter(None, kinds), None)
    found: dict[torch.dtype | None, list[int]] = {}
    for i, kind in enumerate(kinds):
        found.setdefault(kind or first, []).append(i)
    return list(found.values())


def _rule(layers: Layers, base: AdamW | SGD | None) -> str:
    if base is None:
        return "NOTHING"
    if isinstance(base, AdamW):
        return "AMSGRAD" if len(layers.moments) > 2 else "ADAMW"
    if not layers.moments:
        return "SGD"
    return "NESTEROV" if base.nesterov else "MOMENTUM"


def _addresses(layers: Layers, base: AdamW | SGD | None) -> list[tuple[int, ...]]:
    """A row a layer: the columns of :class:`Layers`, and the moments as three. An empty tensor's address is 0."""
    none = [0] * len(layers.weights)
    columns = [*layers[:-1], *_three_moments(layers, base)]
    return list(zip(*([x.data_ptr() for x in column] or none for column in columns), strict=True))


def _three_moments(layers: Layers, base: AdamW | SGD | None) -> list[list[Tensor]]:
    """m or b, v, and max v or the step at which b was made; a column that there is not is empty."""
    moments = [] if base is None else list(layers.moments)
    if isinstance(base, SGD):
        moments.insert(1, [])
    return [*moments, [], [], []][:3]


class _Shape(NamedTuple):
    """What the tiles of a layer depend on."""

    rows: int
    cols: int
    held: bool
    aligned: bool  # rows and every address are multiples of 16 bytes


def _shapes(
    layers: Layers, addresses: list[tuple[int, ...]], base: AdamW | SGD | None, square: bool
) -> tuple[_Shape, ...]:
    # What the tiles read. The third of SGD's moments is a number of steps.
    full = [Layers._fields.index(name) for name in ("weights", "grads", "anchors", "deviations")]
    moments = Layers._fields.index("moments")
    full += range(moments, moments + (3 if isinstance(base, AdamW) else 2))
    shapes = []
    for w, radius, row in zip(layers.weights, layers.radii, addresses, strict=True):
        held = radius.numel() > 0
        rows = 1 if square or not held or w.ndim < 2 else w.shape[0]
        cols = w.numel() // max(rows, 1)
        aligned = cols % ALIGNMENT == 0 and all(row[column] % 16 == 0 for column in full)
        shapes.append(_Shape(rows, cols, held, aligned))
    return tuple(shapes)


class _Layout(NamedTuple):
    """Tiles of layers: of unconstrained ones, then whole rows, then pieces of long rows."""

    tiles: Tensor  # int32 (tiles, 4): layer, first row, piece, kind
    at: list[tuple[int, int]]  # first tile of a layer, and number of tiles
    held: int  # first tile of a constrained layer
    long: int  # first piece of a constrained layer


@lru_cache(KEPT)
def _layout(shapes: tuple[_Shape, ...]) -> _Layout:
    from .triton_kernels import BLOCK, WIDTHS

    def width_of(shape: _Shape) -> int:
        fitting = (w for w in WIDTHS.value if shape.cols <= w and (shape.aligned or w <= BLOCK.value))
        return next(fitting, BLOCK.value)

    widths = list(map(width_of, shapes))
    tiles = [_tiles(i, shape, width) for i, (shape, width) in enumerate(zip(shapes, widths, strict=True))]
    # 0: unconstrained, 1: whole rows, 2: pieces.
    sorts = [0 if not s.held else 1 if s.cols <= width else 2 for s, width in zip(shapes, widths, strict=True)]
    order = sorted(range(len(shapes)), key=sorts.__getitem__)
    at, made = [(0, 0)] * len(shapes), 0
    for i in order:
        at[i] = (made, len(tiles[i]))
        made += len(tiles[i])
    held, long = (sum(len(part) for part, sort in zip(tiles, sorts, strict=True) if sort < least) for least in (1, 2))
    return _Layout(torch.cat([tiles[i] for i in order]), at, held, long)


def _tiles(layer: int, shape: _Shape, width: int) -> Tensor:
    """Rows of the table of tiles."""
    from .triton_kernels import BLOCK, WIDTHS

    pieces, row = -(-shape.cols // width), torch.arange(0, shape.rows, max(1, BLOCK.value // width))
    row, piece = row.repeat_interleave(pieces), torch.arange(pieces).repeat(len(row))
    kind = 2 * WIDTHS.value.index(width) + (not shape.aligned)
    return torch.stack([torch.full_like(row, layer), row, piece, torch.full_like(row, kind)], dim=1).to(torch.int32)


def _recent(kept: OrderedDict[Any, Any], key: Hashable, make: Callable[[], Any]) -> Any:
    """``kept[key]``, made where there is none; those unused for longest are dropped."""
    if key not in kept:
        kept[key] = make()
        while len(kept) > KEPT:
            kept.popitem(last=False)
    kept.move_to_end(key)
    return kept[key]


def _hold(weight: Tensor, table: Any) -> None:
    """Keep what a graph reads while there is a weight that it writes."""
    _captured[:] = [(written, read) for written, read in _captured if not written.expired()]
    _captured.append((StorageWeakRef(weight.untyped_storage()), table))
