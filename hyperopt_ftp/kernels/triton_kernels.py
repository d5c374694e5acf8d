# A constant parameter takes plain numbers, a number's dtype stands as its annotation, and a condition on constants is
# settled when a kernel is compiled, so it stays apart from one on tensors. static_range is unrolled by the compiler.
# ruff: noqa: SIM102, SIM109, SIM300
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportInvalidTypeForm=false
# pyright: reportOperatorIssue=false
"""The Triton kernels of a fused FTP step. Imports triton, so it is imported when it is used; ``triton`` launches them.

Layers lie in tables of int64 on the device, one row a layer: addresses, and sizes. A tile is what one program does:
whole rows of a layer ("rows"), or a run of columns of one long row ("piece"). The shape of a tile is a constant in each
branch of a kernel, and the branch is taken by the tile's kind: so one launch serves layers of all shapes.

16-bit weights compute in float32. Every helper works in a working dtype T, float32 or float64.
"""

import triton
import triton.language as tl

from . import triton_tiles as tiles
from .layers import Layers

# Columns of the table of addresses: those of Layers, of which the last, the moments, is three. 0: there is none.
W = tl.constexpr(Layers._fields.index("weights"))
G = tl.constexpr(Layers._fields.index("grads"))
STEP = tl.constexpr(Layers._fields.index("steps"))
W0 = tl.constexpr(Layers._fields.index("anchors"))
C = tl.constexpr(Layers._fields.index("deviations"))
N = tl.constexpr(Layers._fields.index("norms"))
RADIUS = tl.constexpr(Layers._fields.index("radii"))
RM = tl.constexpr(Layers._fields.index("radius_exp_avgs"))
RV = tl.constexpr(Layers._fields.index("radius_exp_avg_sqs"))
RADIUS_STEP = tl.constexpr(Layers._fields.index("radius_steps"))
M = tl.constexpr(Layers._fields.index("moments"))
V = tl.constexpr(M.value + 1)
X = tl.constexpr(M.value + 2)  # max v, or the number of steps done when b was made
ADDRESSES = tl.constexpr(M.value + 3)

# Columns of the table of sizes. PIECES: tiles of one row, 0 where a tile holds whole rows; SPAN: columns of a piece.
ROWS, COLS, FIRST, TILES, PIECES, SPAN = map(tl.constexpr, range(6))
SIZES = tl.constexpr(6)

# Columns of the table of tiles (int32): layer, first row, piece, kind = 2 * shape + unaligned.
TILE = tl.constexpr(4)

# What the base does.
NOTHING, ADAMW, AMSGRAD, SGD, MOMENTUM, NESTEROV = map(tl.constexpr, range(6))

# Numbers of a layer for the move, in T. AdamW: W' = keep W - size m / (root sqrt(v) + eps).
KEEP, SIZE, ROOT, EPS, BETA1, TAKE1, BETA2, TAKE2 = map(tl.constexpr, range(8))
# SGD: b = mu b + take g. The learning rate is SIZE.
DECAY, MU, TAKE = KEEP, BETA1, TAKE1
NUMBERS = tl.constexpr(8)

FLOOR = tl.constexpr(1e-8)
#: Elements of a tile: 8 a thread with 8 warps. Five tensors of them fit 128 registers, with their addresses where these
#: do not come in fours: so 2 blocks fit a multiprocessor. 16 elements do so in an aligned row of 4096 only, and a loop
#: over a long unaligned row takes 4. tests/kernels/test_triton_compile.py counts.
BLOCK = tl.constexpr(tiles.BLOCK)
#: Columns of a tile of whole rows, by shape.
WIDTHS = tl.constexpr(tiles.WIDTHS)
#: The kind of aligned pieces; unaligned ones have the next. The one before is not used: the widest tile is aligned.
PIECE = tl.constexpr(2 * len(tiles.WIDTHS))
#: Pieces of a row at most, so that each of them can add up its row's sums at once; longer rows have longer pieces.
MOST = tl.constexpr(tiles.MOST)
#: Elements of a turn where one program does a layer.
TURN = tl.constexpr(2048)


@triton.jit(do_not_specialize=["first"])
def partials(
    addresses, sizes, tiles, sums, first, grad_scale, found_inf,
    T: tl.constexpr, G_T: tl.constexpr, C_T: tl.constexpr, EXACT: tl.constexpr, MAXIMIZE: tl.constexpr,
):  # fmt: skip
    """``sum <g, c> / n`` over each tile. Full-size traffic: loads g, c."""
    if found_inf is not None:
        if tl.load(found_inf) != 0:
            return
    tile = first + tl.program_id(0)
    layer, row, piece, kind = _entry(tiles + tile * TILE)
    factor = _factor(grad_scale, T, MAXIMIZE)
    for k in tl.static_range(PIECE - 1):
        if kind == k:
            _dot_rows(addresses, sizes, layer, row, factor, sums + tile, T, G_T, C_T, EXACT, k % 2 == 0, WIDTHS[k // 2])
    for k in tl.static_range(PIECE, PIECE + 2):
        if kind == k:
            _dot_piece(addresses, sizes, layer, row, piece, factor, sums + tile, T, G_T, C_T, EXACT, k % 2 == 0)


@triton.jit
def radii(
    addresses, sizes, sums, packed, numbers, lr_tensor, found_inf,
    lr: tl.float64, beta1: tl.float64, beta2: tl.float64, eps: tl.float64, decay: tl.float64, momentum: tl.float64,
    dampening: tl.float64, radius_lr: tl.float64, kappa: tl.float64, T: tl.constexpr, RULE: tl.constexpr,
):  # fmt: skip
    """One program a layer: the next step, Adam on the radius, and the layer's numbers for the move; all in float64.

    float32 will not do for the numbers: 1 - beta2 would be off by 1e-5, relative.
    """
    if found_inf is not None:
        if tl.load(found_inf) != 0:
            return
    layer = tl.program_id(0).to(tl.int64)

    gamma = tl.full((), 0.0, tl.float64)
    if _given(addresses, layer, RADIUS) > 0:
        h = _layer_sum(sums, sizes, layer)
        h = tl.where(h > 0, h * kappa, h)
        first_moment = _pointer(addresses, layer, RM, T, False)
        second_moment = _pointer(addresses, layer, RV, T, False)
        m = tl.load(first_moment).to(tl.float64) * 0.9 + h * (1 - 0.9)
        v = tl.load(second_moment).to(tl.float64) * 0.999 + h * h * (1 - 0.999)
        tl.store(first_moment, m.to(T))
        tl.store(second_moment, v.to(T))
        count = _pointer(addresses, layer, RADIUS_STEP, tl.float32, False)
        t = (tl.load(count) + 1).to(tl.int64)
        tl.store(count, t.to(tl.float32))
        size = radius_lr / (1 - _power(0.9, t))
        root = tl.sqrt(v / (1 - _power(0.999, t)))
        gamma = tl.load(_pointer(addresses, layer, RADIUS, T, False)).to(tl.float64) - size * m / (root + FLOOR)
        gamma = tl.where(gamma < FLOOR, FLOOR, gamma)  # keeps NaN
    tl.store(packed + layer, gamma.to(T))

    if RULE == NOTHING:
        return
    step = _pointer(addresses, layer, STEP, tl.float32, False)
    done = tl.load(step)
    t = (done + 1).to(tl.int64)
    tl.store(step, done + 1)
    out = numbers + layer * NUMBERS
    rate = tl.full((), 0.0, tl.float64)
    if lr_tensor is not None:
        rate += tl.load(lr_tensor).to(tl.float64)
    else:
        rate += lr
    if RULE == ADAMW or RULE == AMSGRAD:
        tl.store(out + KEEP, (1 - rate * decay).to(T))
        tl.store(out + SIZE, (rate / (1 - _power(beta1, t))).to(T))
        tl.store(out + ROOT, (1 / tl.sqrt(1 - _power(beta2, t))).to(T))
        _put(out + EPS, eps, T)
        _put(out + BETA1, beta1, T)
        _put(out + TAKE1, 1 - beta1, T)
        _put(out + BETA2, beta2, T)
        _put(out + TAKE2, 1 - beta2, T)
    if RULE >= SGD:
        tl.store(out + SIZE, rate.to(T))
        _put(out + DECAY, decay, T)
        _put(out + MU, momentum, T)
        take = tl.full((), 1.0, tl.float64) - dampening
        if _given(addresses, layer, X) > 0:
            # b is still 0 in the step after it was made.
            take = tl.where(tl.load(_pointer(addresses, layer, X, tl.float32, False)) == done, 1.0, take)
        tl.store(out + TAKE, take.to(T))


@triton.jit(do_not_specialize=["first"])
def move(
    addresses, sizes, tiles, sums, packed, numbers, first, grad_scale, found_inf,
    T: tl.constexpr, W_T: tl.constexpr, G_T: tl.constexpr, W0_T: tl.constexpr, C_T: tl.constexpr,
    RULE: tl.constexpr, L2: tl.constexpr, MAXIMIZE: tl.constexpr,
):  # fmt: skip
    """The base's move, and for whole rows the projection too; pieces leave a sum of their row for :func:`finish`.

    Full-size traffic with AdamW: loads W, g, m, v, W0 (16-bit weights: and c), stores m, v, c, W. Of long rows W is
    stored only where c is rounded when it is stored: then W carries W' to ``finish``, where W' - W0 is c to the last
    bit. Unconstrained layers are long rows too; W is stored, W0 and c are not there. All this is by predicate.
    """
    if found_inf is not None:
        if tl.load(found_inf) != 0:
            return
    tile = first + tl.program_id(0)
    layer, row, piece, kind = _entry(tiles + tile * TILE)
    factor = _factor(grad_scale, T, MAXIMIZE)
    # The widest first: the other way round AdamW takes 2 registers more on sm_80.
    for k in tl.static_range(PIECE - 2, -1, -1):
        if kind == k:
            _move_rows(
                addresses, sizes, packed, numbers, layer, row, factor,
                T, W_T, G_T, W0_T, C_T, RULE, L2, k % 2 == 0, WIDTHS[k // 2],
            )  # fmt: skip
    for k in tl.static_range(PIECE, PIECE + 2):
        if kind == k:
            _move_piece(
                addresses, sizes, numbers, layer, row, piece, factor, sums + tile,
                T, W_T, G_T, W0_T, C_T, RULE, L2, k % 2 == 0,
            )  # fmt: skip


@triton.jit(do_not_specialize=["first"])
def finish(
    addresses, sizes, tiles, sums, packed, first, found_inf,
    T: tl.constexpr, W_T: tl.constexpr, W0_T: tl.constexpr, C_T: tl.constexpr, L2: tl.constexpr,
):  # fmt: skip
    """Norm and projection of long rows. Full-size traffic: loads c (lean: W), W0, stores W."""
    if found_inf is not None:
        if tl.load(found_inf) != 0:
            return
    tile = first + tl.program_id(0)
    layer, row, piece, kind = _entry(tiles + tile * TILE)

    # Every piece of a row adds up the same sums in the same order.
    other = tl.arange(0, MOST)
    pieces = tl.load(sizes + layer * SIZES + PIECES)
    total = tl.sum(tl.load(sums + (tile - piece) + other, mask=other < pieces, other=0.0), axis=0)
    n = _norm(total, T, L2)
    tl.store(_pointer(addresses, layer, N, T, False) + row, n, mask=piece == 0)
    s = _scale(tl.load(packed + layer).to(T), n, T)
    if kind == PIECE:
        _finish_piece(addresses, sizes, layer, row, piece, s, T, W_T, W0_T, C_T, True)
    else:
        _finish_piece(addresses, sizes, layer, row, piece, s, T, W_T, W0_T, C_T, False)


@triton.jit
def clip(addresses, sizes, packed, found_inf, T: tl.constexpr):
    """One program a layer: ``radius = min(gamma, max_i n_i)``. A NaN among the norms leaves gamma as it is."""
    if found_inf is not None:
        if tl.load(found_inf) != 0:
            return
    layer = tl.program_id(0).to(tl.int64)
    if _given(addresses, layer, RADIUS) > 0:
        norms = _pointer(addresses, layer, N, T, False)
        rows = tl.load(sizes + layer * SIZES + ROWS)
        top = tl.full((TURN,), FLOOR, T)
        for at in range(0, rows, TURN):
            i = at + tl.arange(0, TURN)
            n = tl.load(norms + i, mask=i < rows, other=0.0)
            n = tl.where(n == n, n, float("inf"))
            top = tl.where(n > top, n, top)
        largest = tl.max(top, axis=0)
        gamma = tl.load(packed + layer).to(T)
        tl.store(_pointer(addresses, layer, RADIUS, T, False), tl.where(gamma > largest, largest, gamma))


# Tiles


@triton.jit
def _dot_rows(
    addresses, sizes, layer, row, factor, out,
    T: tl.constexpr, G_T: tl.constexpr, C_T: tl.constexpr, EXACT: tl.constexpr,
    ALIGNED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    offsets, columns, cols, at, rows, inside = _tile(sizes, layer, row, ALIGNED, WIDE)
    mask = inside[:, None] & (columns < cols)
    g = tl.load(_pointer(addresses, layer, G, G_T, ALIGNED) + at + offsets, mask=mask, other=0.0).to(T) * factor
    c = tl.load(_pointer(addresses, layer, C, C_T, ALIGNED) + at + offsets, mask=mask, other=0.0).to(T)
    n = tl.load(_pointer(addresses, layer, N, T, False) + row + rows, mask=inside, other=1.0)
    products = tl.sum(g * c, axis=1) * _weight(addresses, layer, n, T, EXACT)
    tl.store(out, tl.sum(products, axis=0))


@triton.jit
def _dot_piece(
    addresses, sizes, layer, row, piece, factor, out,
    T: tl.constexpr, G_T: tl.constexpr, C_T: tl.constexpr, EXACT: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    WIDE: tl.constexpr = BLOCK if ALIGNED else BLOCK // 2
    start, stop, cols, at = _piece(sizes, layer, row, piece, ALIGNED)
    grads = _pointer(addresses, layer, G, G_T, ALIGNED) + at
    deviations = _pointer(addresses, layer, C, C_T, ALIGNED) + at
    offsets = tl.arange(0, WIDE)
    total = tl.zeros((WIDE,), T)
    for begin in range(start, stop, WIDE):
        mask = offsets < cols - begin
        g = tl.load(grads + begin + offsets, mask=mask, other=0.0).to(T) * factor
        total += g * tl.load(deviations + begin + offsets, mask=mask, other=0.0).to(T)
    n = tl.load(_pointer(addresses, layer, N, T, False) + row)
    tl.store(out, tl.sum(total, axis=0) * _weight(addresses, layer, n, T, EXACT))


@triton.jit
def _move_rows(
    addresses, sizes, packed, numbers, layer, row, factor,
    T: tl.constexpr, W_T: tl.constexpr, G_T: tl.constexpr, W0_T: tl.constexpr, C_T: tl.constexpr,
    RULE: tl.constexpr, L2: tl.constexpr, ALIGNED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    offsets, columns, cols, at, rows, inside = _tile(sizes, layer, row, ALIGNED, WIDE)
    mask = inside[:, None] & (columns < cols)
    anchored = inside[:, None] & (columns < cols * _given(addresses, layer, W0))
    weights = _pointer(addresses, layer, W, W_T, ALIGNED) + at
    deviations = _pointer(addresses, layer, C, C_T, ALIGNED) + at
    norms = _pointer(addresses, layer, N, T, False) + row + rows
    w = tl.load(weights + offsets, mask=mask, other=0.0).to(T)
    w0 = tl.load(_pointer(addresses, layer, W0, W0_T, ALIGNED) + at + offsets, mask=anchored, other=0.0).to(T)
    if W_T != T:
        old = tl.load(deviations + offsets, mask=mask, other=0.0).to(T)
        n = tl.load(norms, mask=inside, other=1.0)
        s = _scale(tl.load(_pointer(addresses, layer, RADIUS, T, False)), n, T)
        w = _master(w, w0, old, s[:, None], W_T)
    w = _moved(addresses, numbers, layer, w, factor, at, offsets, mask, T, G_T, RULE, ALIGNED)

    c = w - w0
    tl.store(deviations + offsets, _rounded(c, C_T).to(C_T), mask=mask)
    # Where the mask is off, W and W0 are 0 and no rule moves a weight of 0 along a gradient of 0, but 0 / 0 is NaN.
    n = _norm(tl.sum(_size(tl.where(mask, c, 0.0), L2), axis=1), T, L2)
    tl.store(norms, n, mask=inside)
    s = _scale(tl.load(packed + layer).to(T), n, T)
    tl.store(weights + offsets, _rounded(tl.fma(c, s[:, None], w0), W_T).to(W_T), mask=mask)


@triton.jit
def _move_piece(
    addresses, sizes, numbers, layer, row, piece, factor, out,
    T: tl.constexpr, W_T: tl.constexpr, G_T: tl.constexpr, W0_T: tl.constexpr, C_T: tl.constexpr,
    RULE: tl.constexpr, L2: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    WIDE: tl.constexpr = BLOCK if ALIGNED else BLOCK // 2
    start, stop, cols, at = _piece(sizes, layer, row, piece, ALIGNED)
    weights = _pointer(addresses, layer, W, W_T, ALIGNED) + at
    deviations = _pointer(addresses, layer, C, C_T, ALIGNED) + at
    anchors = _pointer(addresses, layer, W0, W0_T, ALIGNED) + at
    anchored = cols * _given(addresses, layer, W0)
    held = cols * _given(addresses, layer, RADIUS)
    s = tl.full((), 1.0, T)
    if W_T != T:
        if held > 0:
            n = tl.load(_pointer(addresses, layer, N, T, False) + row)
            s = _scale(tl.load(_pointer(addresses, layer, RADIUS, T, False)), n, T)
    offsets = tl.arange(0, WIDE)
    total = tl.zeros((WIDE,), T)
    for begin in range(start, stop, WIDE):
        mask = offsets < cols - begin
        w = tl.load(weights + begin + offsets, mask=mask, other=0.0).to(T)
        w0 = tl.load(anchors + begin + offsets, mask=offsets < anchored - begin, other=0.0).to(T)
        if W_T != T:
            # Unconstrained: 0 + 1 * 0 rounds to W where W is 0.
            old = tl.load(deviations + begin + offsets, mask=offsets < held - begin, other=0.0).to(T)
            w = _master(w, w0, old, s, W_T)
        w = _moved(addresses, numbers, layer, w, factor, at + begin, offsets, mask, T, G_T, RULE, ALIGNED)
        c = w - w0
        tl.store(deviations + begin + offsets, _rounded(c, C_T).to(C_T), mask=offsets < held - begin)
        stored = cols if C_T != T else cols - held
        tl.store(weights + begin + offsets, _rounded(w, W_T).to(W_T), mask=offsets < stored - begin)
        total += _size(tl.where(mask, c, 0.0), L2)
    tl.store(out, tl.sum(total, axis=0))


@triton.jit
def _finish_piece(
    addresses, sizes, layer, row, piece, s,
    T: tl.constexpr, W_T: tl.constexpr, W0_T: tl.constexpr, C_T: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    WIDE: tl.constexpr = BLOCK if ALIGNED else BLOCK // 2
    start, stop, cols, at = _piece(sizes, layer, row, piece, ALIGNED)
    weights = _pointer(addresses, layer, W, W_T, ALIGNED) + at
    deviations = _pointer(addresses, layer, C, C_T, ALIGNED) + at
    anchors = _pointer(addresses, layer, W0, W0_T, ALIGNED) + at
    anchored = cols * _given(addresses, layer, W0)
    offsets = tl.arange(0, WIDE)
    for begin in range(start, stop, WIDE):
        mask = offsets < cols - begin
        w0 = tl.load(anchors + begin + offsets, mask=offsets < anchored - begin, other=0.0).to(T)
        if C_T != T:
            c = tl.load(weights + begin + offsets, mask=mask, other=0.0).to(T) - w0
        else:
            c = tl.load(deviations + begin + offsets, mask=mask, other=0.0)
        tl.store(weights + begin + offsets, _rounded(tl.fma(c, s, w0), W_T).to(W_T), mask=mask)


# Elements


@triton.jit
def _moved(
    addresses, numbers, layer, w, factor, at, offsets, mask,
    T: tl.constexpr, G_T: tl.constexpr, RULE: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """W after the base's move; stores its moments."""
    if RULE == NOTHING:
        return w
    layer_numbers = numbers + layer * NUMBERS
    size = tl.load(layer_numbers + SIZE)
    g = tl.load(_pointer(addresses, layer, G, G_T, ALIGNED) + at + offsets, mask=mask, other=0.0).to(T) * factor
    if RULE == ADAMW or RULE == AMSGRAD:
        first = _pointer(addresses, layer, M, T, ALIGNED) + at + offsets
        second = _pointer(addresses, layer, V, T, ALIGNED) + at + offsets
        m = tl.load(first, mask=mask, other=0.0)
        v = tl.load(second, mask=mask, other=0.0)
        m = tl.load(layer_numbers + BETA1) * m + tl.load(layer_numbers + TAKE1) * g
        v = tl.load(layer_numbers + BETA2) * v + tl.load(layer_numbers + TAKE2) * g * g
        tl.store(first, m, mask=mask)
        tl.store(second, v, mask=mask)
        if RULE == AMSGRAD:
            largest = _pointer(addresses, layer, X, T, ALIGNED) + at + offsets
            x = tl.load(largest, mask=mask, other=0.0)
            v = tl.where((x > v) | (x != x), x, v)  # keeps NaN
            tl.store(largest, v, mask=mask)
        root = tl.load(layer_numbers + ROOT) * tl.sqrt(v) + tl.load(layer_numbers + EPS)
        return tl.load(layer_numbers + KEEP) * w - size * (m / root)
    g = g + tl.load(layer_numbers + DECAY) * w
    if RULE == SGD:
        return w - size * g
    buffer = _pointer(addresses, layer, M, T, ALIGNED) + at + offsets
    mu = tl.load(layer_numbers + MU)
    b = mu * tl.load(buffer, mask=mask, other=0.0) + tl.load(layer_numbers + TAKE) * g
    tl.store(buffer, b, mask=mask)
    if RULE == NESTEROV:
        b = g + mu * b
    return w - size * b


@triton.jit
def _master(stored, w0, c, s, W_T: tl.constexpr):
    """Working weights behind 16-bit ones: W0 + s c where that rounds to the stored W."""
    kept = tl.fma(c, s, w0)
    return tl.where(_rounded(kept, W_T) == stored, kept, stored)


@triton.jit
def _rounded(x, TO: tl.constexpr):
    """``x`` rounded to a storage dtype, in the dtype of ``x``. bfloat16 by bits: the interpreter's cast truncates."""
    if TO == tl.float16:
        return x.to(tl.float16).to(x.dtype)
    if TO == tl.bfloat16:
        bits = x.to(tl.float32).to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        bits = tl.where(x == x, bits, 0x7FC00000)
        return bits.to(tl.uint32).to(tl.float32, bitcast=True).to(x.dtype)
    return x


@triton.jit
def _size(c, L2: tl.constexpr):
    if L2:
        return c * c
    return tl.abs(c)


# Rows


@triton.jit
def _norm(total, T: tl.constexpr, L2: tl.constexpr):
    if L2:
        total = tl.sqrt(total) if T == tl.float64 else tl.sqrt_rn(total)
    return total + FLOOR


@triton.jit
def _scale(radius, n, T: tl.constexpr):
    """``min(radius / n, 1)``; a NaN on either side is kept. Rounded division: radius = n must give 1."""
    s = radius / n if T == tl.float64 else tl.div_rn(radius, n)
    return tl.where(radius > n, 1.0, s)


@triton.jit
def _weight(addresses, layer, n, T: tl.constexpr, EXACT: tl.constexpr):
    """What a row's ``<g, c>`` counts: 1 / n, or 0 where the row was not clipped and only clipped rows count."""
    weight = 1 / n
    if EXACT:
        weight = tl.where(tl.load(_pointer(addresses, layer, RADIUS, T, False)) <= n, weight, 0.0)
    return weight


# Layers


@triton.jit
def _layer_sum(sums, sizes, layer):
    """Sum over the tiles of a layer, always in the same order."""
    first = tl.load(sizes + layer * SIZES + FIRST)
    count = tl.load(sizes + layer * SIZES + TILES)
    total = tl.zeros((TURN,), tl.float64)
    for at in range(0, count, TURN):
        i = at + tl.arange(0, TURN)
        total += tl.load(sums + first + i, mask=i < count, other=0.0).to(tl.float64)
    return tl.sum(total, axis=0)


@triton.jit
def _power(base, exponent):
    """``base ** exponent`` in float64 for whole exponents, by squaring: relative error about exponent * 1e-16."""
    result = tl.full((), 1.0, tl.float64)
    factor = result * base
    while exponent > 0:
        result = tl.where((exponent & 1) == 1, result * factor, result)
        factor = factor * factor
        exponent = exponent >> 1
    return result


@triton.jit
def _put(target, value, T: tl.constexpr):
    """Store a number; under the interpreter it comes as a Python float."""
    tl.store(target, (tl.full((), 0.0, tl.float64) + value).to(T))


@triton.jit
def _factor(grad_scale, T: tl.constexpr, MAXIMIZE: tl.constexpr):
    """What turns stored gradients into g."""
    factor = tl.full((), -1.0 if MAXIMIZE else 1.0, tl.float64)
    if grad_scale is not None:
        factor = factor / tl.load(grad_scale).to(tl.float64)
    return factor.to(T)


# Tables


@triton.jit
def _entry(entry):
    """Layer, first row, piece and kind of a tile."""
    layer, row, piece = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
    return layer.to(tl.int64), row.to(tl.int64), piece.to(tl.int64), tl.load(entry + 3)


@triton.jit
def _given(addresses, layer, COLUMN: tl.constexpr):
    """1 or 0. Masks are made by multiplying a bound with it, which keeps what is known of the bound's divisors."""
    return (tl.load(addresses + layer * ADDRESSES + COLUMN) != 0).to(tl.int64)


@triton.jit
def _pointer(addresses, layer, COLUMN: tl.constexpr, T: tl.constexpr, ALIGNED: tl.constexpr):
    pointer = tl.load(addresses + layer * ADDRESSES + COLUMN).to(tl.pointer_type(T))
    if ALIGNED:
        # The cast forgets what is known of the address, so the promise comes after it.
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def _cols(sizes, layer, ALIGNED: tl.constexpr):
    cols = tl.load(sizes + layer * SIZES + COLS)
    if ALIGNED:
        cols = tl.multiple_of(cols, 16)
    return cols


@triton.jit
def _tile(sizes, layer, row, ALIGNED: tl.constexpr, WIDE: tl.constexpr):
    """Offsets of a tile of whole rows from its first element (they fit int32), its columns with their bound, that first
    element, and its rows with their mask."""
    cols = _cols(sizes, layer, ALIGNED)
    rows = tl.arange(0, max(1, BLOCK // WIDE))
    inside = rows < tl.load(sizes + layer * SIZES + ROWS) - row
    columns = tl.arange(0, WIDE)[None, :]
    return rows[:, None] * cols.to(tl.int32) + columns, columns, cols, row * cols, rows, inside


@triton.jit
def _piece(sizes, layer, row, piece, ALIGNED: tl.constexpr):
    """Columns where a piece starts and stops, columns of the row, and the row's first element."""
    cols = _cols(sizes, layer, ALIGNED)
    span = tl.multiple_of(tl.load(sizes + layer * SIZES + SPAN), BLOCK)
    start = piece * span
    return start, tl.minimum(start + span, cols), cols, row * cols
