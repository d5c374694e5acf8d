"""Launches of the Triton execution: the fused step of all layers in at most five launches, without a host sync.

Order ("radius first"): ``partials`` (<g, c> / n by tile), ``radii`` (Adam on the radii), ``move`` (the base's move, and
the projection of rows that fit a tile), ``finish`` (projection of longer rows, where there are any), ``clip``.

Full-size traffic of a step with AdamW, by tile (the compile tests count it in the IR):

=============  =============================================  ==================
launch         loads                                          stores
=============  =============================================  ==================
``partials``   g, c
``move``       W, g, m, v, W0 (16-bit weights: and c)         m, v, c, W
``finish``     c, W0 (long rows only; lean: W, W0)            W
=============  =============================================  ==================

amsgrad loads and stores max v too; SGD has b, or nothing, for m and v. In ``move``, long rows do not store W, and
unconstrained layers load no W0 and store no c: both by predicate. Where the dtypes of the anchors differ, ``move`` and
``finish`` are launched once for each dtype.

Imports triton when it is called. Runs on CPU tensors under ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from .layers import SGD, AdamW, Amp, Ball, Layers, check, working_dtype
from .triton_tiles import ALIGNMENT, BLOCK, MOST, WIDTHS

#: Tables (layouts, addresses) and spares that are kept at most. Gradients often take turns between a few addresses.
KEPT = 64

_tables: OrderedDict[Hashable, Any] = OrderedDict()
# A CUDA graph copies its tables again at each replay: from pinned memory, which cannot be allocated during capture.
_spares: OrderedDict[int, Tensor] = OrderedDict()
# What graphs read, with the storage of weights that they write: without those no graph can be replayed.
_captured: list[tuple[StorageWeakRef, Any]] = []

_PLAIN = Amp()


def step_(layers: Layers, base: AdamW | SGD, ball: Ball, amp: Amp = _PLAIN) -> None:
    """A whole FTP step, in place."""
    if not layers.weights:
        return
    run = _Run(layers, ball, _rule(base, layers), amp)
    run.partials(ball.exact)
    run.radii(base, ball)
    run.move()
    run.clip()


def radii_(layers: Layers, ball: Ball, amp: Amp = _PLAIN) -> Tensor:
    """The radii's half of a step, before a base of another kind moves the weights.

    Advances the radii's moments and their steps; returns the new radii, not yet clipped, shape (layers,); 0 for an
    unconstrained layer.
    """
    if not layers.weights:
        return torch.empty(0)
    run = _Run(layers, ball, "NOTHING", amp)
    run.partials(ball.exact)
    run.radii(None, ball)
    return run.packed


def project_(layers: Layers, packed: Tensor, ball: Ball) -> None:
    """The other half, after the base's step: c, n, the clipped radii and the projected weights."""
    if not layers.weights:
        return
    run = _Run(layers, ball, "NOTHING")
    run.packed = packed
    run.move()
    run.clip()


class _Layout(NamedTuple):
    """Sizes and tiles of layers, on the device, and where the tiles of a launch lie."""

    sizes: Tensor  # int64 (layers, 6)
    tiles: Tensor  # int32 (tiles, 4): unconstrained layers first, then by dtype of the anchor whole rows and pieces
    held: int  # first tile of a constrained layer
    groups: list[_Group]


class _Group(NamedTuple):
    """Tiles of layers whose anchors have one dtype: [first, pieces) hold whole rows, [pieces, stop) are pieces."""

    anchor: torch.dtype | None
    first: int
    pieces: int
    stop: int


class _Run:
    """One call: its tables, scratch memory, and the constants of its kernels."""

    def __init__(self, layers: Layers, ball: Ball, rule: str, amp: Amp = _PLAIN) -> None:
        from . import triton_kernels as kernels

        weights = layers.weights
        real, device = working_dtype(weights[0]), weights[0].device
        self.packed = torch.empty(len(weights), dtype=real, device=device)
        held = [i for i, radius in enumerate(layers.radii) if radius.numel()]
        deviation = layers.deviations[held[0]].dtype if held else real
        if deviation != real and (deviation, weights[0].dtype) != (torch.bfloat16, torch.float32):
            raise ValueError(f"deviations of {weights[0].dtype} weights must be {real}, got {deviation}")
        self.kernels, self.real, self.device, self.weight = kernels, real, device, weights[0]
        self.stored, self.gradient = (weights[0].dtype, deviation), layers.grads[0].dtype
        self.rule = getattr(kernels, rule).value
        self.amp, self.square = amp, ball.norm == "l2"

        adam = rule in ("ADAMW", "AMSGRAD")
        check(layers, layers.moments if adam else layers.moments[:1])
        addresses = _addresses(layers, adam)
        shapes = _shapes(layers, addresses, adam)
        place = (device, torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0)
        square = self.square
        self.layout: _Layout = self._kept((place, square, shapes), lambda: _layout(shapes, square, self._send))
        self.addresses: Tensor = self._kept((place, *addresses), lambda: self._send(torch.tensor(addresses)))
        self.sums = torch.empty(len(self.layout.tiles), dtype=real, device=device)
        self.numbers = torch.empty(len(weights), kernels.NUMBERS.value, dtype=real, device=device)

    def partials(self, exact: bool) -> None:
        _, c = self.stored
        first = self.layout.held
        self._launch(
            "partials", len(self.layout.tiles) - first, self.layout.tiles, self.sums, first,
            self.amp.grad_scale, self.amp.found_inf,
            G_T=self._type(self.gradient), C_T=self._type(c), EXACT=exact, MAXIMIZE=self.amp.maximize,
        )  # fmt: skip

    def radii(self, base: AdamW | SGD | None, ball: Ball) -> None:
        numbers = {"lr": 0.0, "beta1": 0.0, "beta2": 0.0, "eps": 0.0, "decay": 0.0, "momentum": 0.0, "dampening": 0.0}
        lr = 0.0 if base is None else base.lr
        if isinstance(lr, Tensor) and lr.device != self.device:
            lr = float(lr)  # of the CPU: nothing waits
        if isinstance(base, AdamW):
            numbers |= {"beta1": base.beta1, "beta2": base.beta2, "eps": base.eps, "decay": base.weight_decay}
        elif isinstance(base, SGD):
            numbers |= {"momentum": base.momentum, "dampening": base.dampening, "decay": base.weight_decay}
        numbers |= {"lr": 0.0 if isinstance(lr, Tensor) else lr, "radius_lr": ball.radius_lr, "kappa": ball.kappa}
        self._launch(
            "radii", len(self.packed), self.sums, self.packed, self.numbers,
            lr if isinstance(lr, Tensor) else None, self.amp.found_inf,
            **{name: float(value) for name, value in numbers.items()}, RULE=self.rule,
        )  # fmt: skip

    def move(self) -> None:
        w, c = self.stored
        for group in self.layout.groups:
            types = {"W_T": self._type(w), "W0_T": self._type(group.anchor or self.real), "C_T": self._type(c)}
            self._launch(
                "move", group.stop - group.first, self.layout.tiles, self.sums, self.packed, self.numbers, group.first,
                self.amp.grad_scale, self.amp.found_inf,
                **types, G_T=self._type(self.gradient), RULE=self.rule, L2=self.square, MAXIMIZE=self.amp.maximize,
            )  # fmt: skip
            self._launch(
                "finish", group.stop - group.pieces, self.layout.tiles, self.sums, self.packed, group.pieces,
                self.amp.found_inf, **types, L2=self.square,
            )  # fmt: skip

    def clip(self) -> None:
        self._launch("clip", len(self.packed), self.packed, self.amp.found_inf)

    def _launch(self, name: str, programs: int, *arguments: Any, **constants: Any) -> None:
        if programs == 0:
            return
        # float64 takes twice the registers. Where to fuse into fma is said in the kernels, so that W' - W0 and W0 + s c
        # come out the same in each of them; to name it also keeps triton from warning that its default will change.
        warps = 16 if self.real == torch.float64 else 8
        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            getattr(self.kernels, name)[(programs,)](
                self.addresses, self.layout.sizes, *arguments, **constants,
                T=self._type(self.real), num_warps=warps, enable_fp_fusion=False,
            )  # fmt: skip

    def _type(self, dtype: torch.dtype) -> Any:
        return getattr(self.kernels.tl, str(dtype).removeprefix("torch."))

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

    def _kept(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """A table that depends on ``key`` alone."""
        capturing = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
        if not capturing:
            return _recent(_tables, key, make)
        # What a graph fills is there after a replay only, so it is not kept for others.
        found = _recent(_tables, key, make) if key in _tables else make()
        _hold(self.weight, found)  # replays read it, whatever is dropped from the tables
        return found


def _rule(base: AdamW | SGD, layers: Layers) -> str:
    if isinstance(base, AdamW):
        return "AMSGRAD" if len(layers.moments) > 2 else "ADAMW"
    if not layers.moments:
        return "SGD"
    return "NESTEROV" if base.nesterov else "MOMENTUM"


def _addresses(layers: Layers, adam: bool) -> list[tuple[int, ...]]:
    """The table of addresses, a row a layer: the columns of :class:`Layers`, and the moments as three."""
    moments = list(layers.moments)
    if not adam and len(moments) == 2:
        moments.insert(1, [])  # b, then the step at which it was made
    columns = [*layers[:-1], *moments, *[[]] * (3 - len(moments))]
    none = [0] * len(layers.weights)
    # An empty tensor's address is 0.
    return list(zip(*([x.data_ptr() for x in column] or none for column in columns), strict=True))


class _Shape(NamedTuple):
    """What the tiles of a layer depend on."""

    shape: torch.Size
    stride: tuple[int, ...]
    held: bool
    aligned: bool  # every address is a multiple of 16 bytes
    anchor: torch.dtype | None


def _shapes(layers: Layers, addresses: list[tuple[int, ...]], adam: bool) -> tuple[_Shape, ...]:
    # What the tiles read. The third of SGD's moments is a number of steps.
    full = [Layers._fields.index(name) for name in ("weights", "grads", "anchors", "deviations")]
    moments = Layers._fields.index("moments")
    full += range(moments, moments + (3 if adam else 2))
    shapes = []
    for w, w0, radius, row in zip(layers.weights, layers.anchors, layers.radii, addresses, strict=True):
        held = radius.numel() > 0
        anchor = w0.dtype if held and w0.numel() else None
        joint = 0
        for column in full:
            joint |= row[column]
        shapes.append(_Shape(w.shape, w.stride(), held, joint % 16 == 0, anchor))
    return tuple(shapes)


def _layout(shapes: tuple[_Shape, ...], square: bool, send: Callable[[Tensor], Tensor]) -> _Layout:
    """Cut layers into tiles."""
    sizes: list[list[int]] = [[]] * len(shapes)
    tiles: list[Tensor] = []
    groups: list[_Group] = []
    made = 0

    def cut(members: list[int]) -> None:
        nonlocal made
        for i in members:
            rows, cols, pieces, span = _cut(shapes[i], square)
            part = _tiles(i, rows, cols, pieces, span, shapes[i].aligned)
            sizes[i] = [rows, cols, made, len(part), pieces, span]
            tiles.append(part)
            made += len(part)

    every = range(len(shapes))
    cut([i for i in every if not shapes[i].held])
    held = made
    anchors = list(dict.fromkeys(shape.anchor for shape in shapes if shape.anchor is not None)) or [None]
    for k, anchor in enumerate(anchors):
        # Unconstrained layers and zero anchors, which load no anchor, go with the first dtype.
        mine = [i for i in every if shapes[i].held and shapes[i].anchor in ((anchor, None) if k == 0 else (anchor,))]
        first = made if k else 0
        cut([i for i in mine if not _cut(shapes[i], square)[2]])
        pieces = made
        cut([i for i in mine if _cut(shapes[i], square)[2]])
        groups.append(_Group(anchor, first, pieces, made))
    return _Layout(send(torch.tensor(sizes)), send(torch.cat(tiles)), held, groups)


def _cut(shape: _Shape, square: bool) -> tuple[int, int, int, int]:
    """Rows and columns of a layer, and for rows longer than a tile the pieces of a row and their columns."""
    numel = math.prod(shape.shape)
    rows = 1 if square or not shape.held or len(shape.shape) < 2 else shape.shape[0]
    cols = numel // rows if rows else 0
    if numel and rows > 1 and shape.stride[0] != cols:
        raise ValueError(f"rows must be runs of memory, got shape {tuple(shape.shape)} with strides {shape.stride}")
    if shape.held and cols <= (WIDTHS[-1] if shape.aligned and cols % ALIGNMENT == 0 else BLOCK):
        return rows, cols, 0, 0
    span = BLOCK * max(1, -(-cols // (BLOCK * MOST)))
    return rows, cols, -(-cols // span), span


def _tiles(layer: int, rows: int, cols: int, pieces: int, span: int, aligned: bool) -> Tensor:
    """Rows of the table of tiles: layer, first row, piece, kind."""
    if rows * cols == 0:
        return torch.zeros(0, 4, dtype=torch.int32)
    unaligned = int(not (aligned and cols % ALIGNMENT == 0))
    if span:
        row, piece, kind = torch.arange(rows).repeat_interleave(pieces), torch.arange(pieces).repeat(rows), len(WIDTHS)
    else:
        kind = next(k for k, width in enumerate(WIDTHS) if cols <= width)
        row = torch.arange(0, rows, max(1, BLOCK // WIDTHS[kind]))
        piece = torch.zeros_like(row)
    columns = [torch.full_like(row, layer), row, piece, torch.full_like(row, 2 * kind + unaligned)]
    return torch.stack(columns, dim=1).to(torch.int32)


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
