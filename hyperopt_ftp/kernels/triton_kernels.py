# A constant parameter takes plain numbers, a number's dtype stands as its annotation, and a condition on constants is
# settled when a kernel is compiled, so it stays apart from one on tensors. static_range is unrolled by the compiler.
# ruff: noqa: SIM102, SIM109, SIM300
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportInvalidTypeForm=false
# pyright: reportOperatorIssue=false
"""The Triton kernels of a fused FTP step. Imports triton, so it is imported when it is used; ``triton`` launches them.

A table of int64 on the device has a row for each layer: addresses, then sizes. A tile is what one program does: whole
rows of a layer, or a piece of a long row. Its shape is a constant in each branch of a kernel, and the branch is taken
by the tile's kind: so one launch serves layers of all shapes.

16-bit weights compute in float32. Every helper works in a working dtype T, float32 or float64.
"""

import triton
import triton.language as tl

# Columns of the table of layers: those of Layers, of which the last, the moments, is three (X: max v, or the number of
# steps done when b was made). 0: there is none. Then sizes: of the layer, and its first tile and number of tiles.
W, G, STEP, W0, C, N, RADIUS, RM, RV, RADIUS_STEP, M, V, X, ROWS, COLS, FIRST, TILES = map(tl.constexpr, range(17))
COLUMNS = tl.constexpr(17)

# What the base does.
NOTHING, ADAMW, AMSGRAD, SGD, MOMENTUM, NESTEROV = map(tl.constexpr, range(6))

# Numbers of a layer for the move, in T. AdamW: W' = keep W - size m / (root sqrt(v) + eps).
KEEP, SIZE, ROOT, EPS, BETA1, TAKE1, BETA2, TAKE2 = map(tl.constexpr, range(8))
# SGD: b = mu b + take g. The learning rate is SIZE.
DECAY, MU, TAKE = KEEP, BETA1, TAKE1
NUMBERS = tl.constexpr(8)

FLOOR = tl.constexpr(1e-8)
#: Elements of a tile: 8 a thread with 8 warps. Five tensors of them fit 128 registers, with their addresses where these
#: do not come in fours: so 2 blocks fit a multiprocessor. 16 elements do so in an aligned row of 4096 only.
#: tests/kernels/test_triton_compile.py counts.
BLOCK = tl.constexpr(2048)
#: Columns of a tile, by shape. The last is for aligned layers only. A row that fits none is cut into pieces of BLOCK.
WIDTHS = tl.constexpr((64, 256, 1024, 2048, 4096))
#: Kinds of tiles, 2 * shape + unaligned; PIECE: that of aligned pieces.
KINDS = tl.constexpr(2 * len(WIDTHS.value) - 1)
PIECE = tl.constexpr(2 * WIDTHS.value.index(BLOCK.value))
#: Elements of a turn where one program does a layer or a row.
TURN = tl.constexpr(2048)


@triton.jit(do_not_specialize=["first"])
def partials(
    layers, tiles, first, sums, grad_scale,
    T: tl.constexpr, G_T: tl.constexpr, C_T: tl.constexpr, EXACT: tl.constexpr, MAXIMIZE: tl.constexpr,
):  # fmt: skip
    """``sum <g, c> / n`` over each tile. Full-size traffic: loads g, c."""
    tile = first + tl.program_id(0)
    _, layer, row, piece, kind = _entry(layers, tiles, tile)
    factor = _factor(grad_scale, T, MAXIMIZE)
    for k in tl.static_range(KINDS):
        if kind == k:
            at, offsets, columns, rows, inside, cols = _tile(layer, row, piece, k)
            mask = inside[:, None] & (columns < cols)
            g = tl.load(_elements(layer, G, G_T, at, k) + offsets, mask=mask, other=0.0).to(T) * factor
            c = tl.load(_elements(layer, C, C_T, at, k) + offsets, mask=mask, other=0.0).to(T)
            n = tl.load(_pointer(layer, N, T) + rows, mask=inside, other=1.0)
            weight = 1 / n
            if EXACT:  # only clipped rows count
                weight = tl.where(tl.load(_pointer(layer, RADIUS, T)) <= n, weight, 0.0)
            tl.store(sums + tile, tl.sum(tl.sum(g * c, axis=1) * weight, axis=0))


@triton.jit
def radii(
    layers, sums, packed, numbers, lr_tensor, found_inf,
    lr: tl.float64, beta1: tl.float64, beta2: tl.float64, eps: tl.float64, weight_decay: tl.float64,
    momentum: tl.float64, dampening: tl.float64, radius_lr: tl.float64, kappa: tl.float64,
    T: tl.constexpr, RULE: tl.constexpr,
):  # fmt: skip
    """One program a layer: the next step, Adam on the radius, and the layer's numbers for the move; all in float64.

    float32 will not do for the numbers: 1 - beta2 would be off by 1e-5, relative.
    """
    if found_inf is not None:
        if tl.load(found_inf) != 0:
            return
    index = tl.program_id(0)
    layer = layers + index * COLUMNS

    gamma = tl.full((), 0.0, tl.float64)
    if _given(layer, RADIUS) > 0:
        h = _sum(sums + tl.load(layer + FIRST), tl.load(layer + TILES))
        h = tl.where(h > 0, h * kappa, h)
        first_moment, second_moment = _pointer(layer, RM, T), _pointer(layer, RV, T)
        m = tl.load(first_moment).to(tl.float64) * 0.9 + h * (1 - 0.9)
        v = tl.load(second_moment).to(tl.float64) * 0.999 + h * h * (1 - 0.999)
        tl.store(first_moment, m.to(T))
        tl.store(second_moment, v.to(T))
        count = _pointer(layer, RADIUS_STEP, tl.float32)
        t = tl.load(count) + 1
        tl.store(count, t)
        size = radius_lr / (1 - _power(0.9, t))
        root = tl.sqrt(v / (1 - _power(0.999, t)))
        gamma = tl.load(_pointer(layer, RADIUS, T)).to(tl.float64) - size * m / (root + FLOOR)
        gamma = tl.where(gamma < FLOOR, FLOOR, gamma)  # keeps NaN
    tl.store(packed + index, gamma.to(T))

    if RULE == NOTHING:
        return
    step = _pointer(layer, STEP, tl.float32)
    done = tl.load(step)
    t = done + 1
    tl.store(step, t)
    out = numbers + index * NUMBERS
    rate = tl.full((), 0.0, tl.float64)
    if lr_tensor is not None:
        rate += tl.load(lr_tensor).to(tl.float64)
    else:
        rate += lr
    if RULE == ADAMW or RULE == AMSGRAD:
        _put(out + KEEP, 1 - rate * weight_decay, T)
        _put(out + SIZE, rate / (1 - _power(beta1, t)), T)
        _put(out + ROOT, 1 / tl.sqrt(1 - _power(beta2, t)), T)
        _put(out + EPS, eps, T)
        _put(out + BETA1, beta1, T)
        _put(out + TAKE1, 1 - beta1, T)
        _put(out + BETA2, beta2, T)
        _put(out + TAKE2, 1 - beta2, T)
    if RULE >= SGD:
        _put(out + SIZE, rate, T)
        _put(out + DECAY, weight_decay, T)
        _put(out + MU, momentum, T)
        take = tl.full((), 1.0, tl.float64) - dampening
        if _given(layer, X) > 0:
            # b is still 0 in the step after it was made.
            take = tl.where(tl.load(_pointer(layer, X, tl.float32)) == done, 1.0, take)
        _put(out + TAKE, take, T)


@triton.jit(do_not_specialize=["first"])
def move(
    layers, tiles, first, sums, packed, numbers, grad_scale, found_inf,
    T: tl.constexpr, W_T: tl.constexpr, G_T: tl.constexpr, W0_T: tl.constexpr, C_T: tl.constexpr,
    RULE: tl.constexpr, L2: tl.constexpr, MAXIMIZE: tl.constexpr,
):  # fmt: skip
    """The base's move, and the projection of whole rows. Pieces leave W' in W, and a sum for the norm of their row.

    Full-size traffic with AdamW: loads W, g, m, v, W0 (16-bit weights: and c), stores m, v, c, W. Unconstrained layers
    are neither whole rows, nor are W0 and c there: by predicate.
    """
    if found_inf is not None:
        if tl.load(found_inf) != 0:
            return
    tile = first + tl.program_id(0)
    index, layer, row, piece, kind = _entry(layers, tiles, tile)
    factor = _factor(grad_scale, T, MAXIMIZE)
    held, count = _given(layer, RADIUS), tl.load(layer + ROWS)
    for k in tl.static_range(KINDS):
        if kind == k:
            at, offsets, columns, rows, inside, cols = _tile(layer, row, piece, k)
            mask = inside[:, None] & (columns < cols)
            constrained = inside[:, None] & (columns < cols * held)
            anchored = inside[:, None] & (columns < cols * _given(layer, W0))
            weights, deviations = _elements(layer, W, W_T, at, k), _elements(layer, C, C_T, at, k)
            norms = _pointer(layer, N, T) + rows
            w = tl.load(weights + offsets, mask=mask, other=0.0).to(T)
            w0 = tl.load(_elements(layer, W0, W0_T, at, k) + offsets, mask=anchored, other=0.0).to(T)
            if W_T != T:
                # Working weights: W0 + s c where that rounds to W. Unconstrained: 0 + s * 0 does so where W is 0.
                old = tl.load(deviations + offsets, mask=constrained, other=0.0).to(T)
                bounded = rows < count * held
                n = tl.load(norms, mask=bounded, other=1.0)
                radius = tl.load(_pointer(layer, RADIUS, T) + rows * 0, mask=bounded, other=1.0)  # once for each row
                kept = tl.fma(old, _scale(radius, n, T)[:, None], w0)
                w = tl.where(_rounded(kept, W_T) == w, kept, w)
            w = _moved(layer, numbers + index * NUMBERS, w, factor, at, offsets, mask, T, G_T, RULE, k)

            c = w - w0
            tl.store(deviations + offsets, _rounded(c, C_T).to(C_T), mask=constrained)
            # Where the mask is off, W and W0 are 0 and no rule moves a weight of 0 along a gradient of 0, but 0 / 0 is
            # NaN.
            total = tl.sum(_size(tl.where(mask, c, 0.0), L2), axis=1)
            tl.store(sums + tile, tl.sum(total, axis=0))
            whole = held * (cols <= WIDTHS[k // 2])
            n = _norm(total, T, L2)
            tl.store(norms, n, mask=rows < count * whole)
            s = _scale(tl.load(packed + index).to(T), n, T)
            w = tl.where(whole > 0, tl.fma(c, s[:, None], w0), w)
            tl.store(weights + offsets, _rounded(w, W_T).to(W_T), mask=mask)


@triton.jit(do_not_specialize=["first"])
def long_norms(layers, tiles, first, sums, found_inf, T: tl.constexpr, L2: tl.constexpr):
    """The norm of a long row, by the program of its first piece."""
    if found_inf is not None:
        if tl.load(found_inf) != 0:
            return
    tile = first + tl.program_id(0)
    _, layer, row, piece, _ = _entry(layers, tiles, tile)
    if piece == 0:
        total = _sum(sums + tile, tl.cdiv(tl.load(layer + COLS), BLOCK))
        tl.store(_pointer(layer, N, T) + row, _norm(total.to(T), T, L2))


@triton.jit(do_not_specialize=["first"])
def finish(
    layers, tiles, first, packed, found_inf,
    T: tl.constexpr, W_T: tl.constexpr, W0_T: tl.constexpr, C_T: tl.constexpr,
):  # fmt: skip
    """The projection of long rows. Full-size traffic: loads W (16-bit weights: c), W0, stores W."""
    if found_inf is not None:
        if tl.load(found_inf) != 0:
            return
    index, layer, row, piece, kind = _entry(layers, tiles, first + tl.program_id(0))
    s = _scale(tl.load(packed + index).to(T), tl.load(_pointer(layer, N, T) + row), T)
    for k in tl.static_range(PIECE, PIECE + 2):
        if kind == k:
            at, offsets, columns, _, _, cols = _tile(layer, row, piece, k)
            mask = columns < cols
            anchored = columns < cols * _given(layer, W0)
            weights = _elements(layer, W, W_T, at, k) + offsets
            w0 = tl.load(_elements(layer, W0, W0_T, at, k) + offsets, mask=anchored, other=0.0).to(T)
            if W_T == T:  # W' - W0 is c to the last bit, which may be kept in fewer
                c = tl.load(weights, mask=mask, other=0.0) - w0
            else:
                c = tl.load(_elements(layer, C, C_T, at, k) + offsets, mask=mask, other=0.0)
            tl.store(weights, _rounded(tl.fma(c, s, w0), W_T).to(W_T), mask=mask)


@triton.jit
def clip(layers, packed, found_inf, T: tl.constexpr):
    """One program a layer: ``radius = min(gamma, max_i n_i)``. A NaN among the norms leaves gamma as it is."""
    if found_inf is not None:
        if tl.load(found_inf) != 0:
            return
    layer = layers + tl.program_id(0) * COLUMNS
    if _given(layer, RADIUS) > 0:
        rows = tl.load(layer + ROWS)
        top = tl.full((TURN,), FLOOR, T)
        for at in range(0, rows, TURN):
            i = at + tl.arange(0, TURN)
            n = tl.load(_pointer(layer, N, T) + i, mask=i < rows, other=0.0)
            n = tl.where(n == n, n, float("inf"))
            top = tl.where(n > top, n, top)
        largest = tl.max(top, axis=0)
        gamma = tl.load(packed + tl.program_id(0)).to(T)
        tl.store(_pointer(layer, RADIUS, T), tl.where(gamma > largest, largest, gamma))


# Elements


@triton.jit
def _moved(
    layer, numbers, w, factor, at, offsets, mask,
    T: tl.constexpr, G_T: tl.constexpr, RULE: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """W after the base's move; stores its moments."""
    if RULE == NOTHING:
        return w
    size = tl.load(numbers + SIZE)
    g = tl.load(_elements(layer, G, G_T, at, KIND) + offsets, mask=mask, other=0.0).to(T) * factor
    if RULE == ADAMW or RULE == AMSGRAD:
        first = _elements(layer, M, T, at, KIND) + offsets
        second = _elements(layer, V, T, at, KIND) + offsets
        m = tl.load(first, mask=mask, other=0.0)
        v = tl.load(second, mask=mask, other=0.0)
        m = tl.load(numbers + BETA1) * m + tl.load(numbers + TAKE1) * g
        v = tl.load(numbers + BETA2) * v + tl.load(numbers + TAKE2) * g * g
        tl.store(first, m, mask=mask)
        tl.store(second, v, mask=mask)
        if RULE == AMSGRAD:
            largest = _elements(layer, X, T, at, KIND) + offsets
            x = tl.load(largest, mask=mask, other=0.0)
            v = tl.where((x > v) | (x != x), x, v)  # keeps NaN
            tl.store(largest, v, mask=mask)
        root = tl.load(numbers + ROOT) * tl.sqrt(v) + tl.load(numbers + EPS)
        return tl.load(numbers + KEEP) * w - size * (m / root)
    g = g + tl.load(numbers + DECAY) * w
    if RULE == SGD:
        return w - size * g
    buffer = _elements(layer, M, T, at, KIND) + offsets
    mu = tl.load(numbers + MU)
    b = mu * tl.load(buffer, mask=mask, other=0.0) + tl.load(numbers + TAKE) * g
    tl.store(buffer, b, mask=mask)
    if RULE == NESTEROV:
        b = g + mu * b
    return w - size * b


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


# Numbers


@triton.jit
def _sum(values, count):
    """Always in the same order, in float64."""
    total = tl.zeros((TURN,), tl.float64)
    for at in range(0, count, TURN):
        i = at + tl.arange(0, TURN)
        total += tl.load(values + i, mask=i < count, other=0.0).to(tl.float64)
    return tl.sum(total, axis=0)


@triton.jit
def _power(base, exponent):
    """``base ** exponent`` in float64: relative error about exponent * 1e-16."""
    return tl.exp(exponent.to(tl.float64) * tl.log(tl.full((), 0.0, tl.float64) + base))


@triton.jit
def _put(target, value, T: tl.constexpr):
    """Store a number; under the interpreter it may come as a Python float."""
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
def _entry(layers, tiles, tile):
    """Of a tile: number of its layer, the layer's row in the table, first row, piece, kind."""
    entry = tiles + tile * 4
    index = tl.load(entry).to(tl.int64)
    row, piece, kind = tl.load(entry + 1).to(tl.int64), tl.load(entry + 2).to(tl.int64), tl.load(entry + 3)
    return index, layers + index * COLUMNS, row, piece, kind


@triton.jit
def _given(layer, COLUMN: tl.constexpr):
    """1 or 0. Masks are made by multiplying a bound with it, which keeps what is known of the bound's divisors."""
    return (tl.load(layer + COLUMN) != 0).to(tl.int64)


@triton.jit
def _pointer(layer, COLUMN: tl.constexpr, T: tl.constexpr):
    return tl.load(layer + COLUMN).to(tl.pointer_type(T))


@triton.jit
def _elements(layer, COLUMN: tl.constexpr, T: tl.constexpr, at, KIND: tl.constexpr):
    """A full-size tensor from element ``at`` on."""
    pointer = _pointer(layer, COLUMN, T)
    if KIND % 2 == 0:
        # The cast forgets what is known of the address, so the promise comes after it.
        pointer = tl.multiple_of(pointer, 16)
    return pointer + at


@triton.jit
def _tile(layer, row, piece, KIND: tl.constexpr):
    """A tile's first element, offsets from there (they fit int32), columns, rows with their mask, columns of a row."""
    WIDE: tl.constexpr = WIDTHS[KIND // 2]
    cols = tl.load(layer + COLS)
    if KIND % 2 == 0:
        cols = tl.multiple_of(cols, 16)
    down, across = tl.arange(0, max(1, BLOCK // WIDE)), tl.arange(0, WIDE)[None, :]
    offsets = down[:, None] * cols.to(tl.int32) + across
    inside = down < tl.load(layer + ROWS) - row
    return row * cols + piece * WIDE, offsets, piece * WIDE + across, row + down, inside, cols
