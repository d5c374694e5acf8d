# A constant parameter takes plain numbers, a number's dtype stands as its annotation, and a condition on constants is
# settled when a kernel is compiled, so it stays apart from one on tensors.
# ruff: noqa: SIM102, SIM109, SIM300
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportInvalidTypeForm=false
# pyright: reportOperatorIssue=false
"""The Triton kernels of a fused FTP step. Imports triton, so it is imported when it is used; ``triton`` launches them.

A table of int64 on the device has a line for each layer: addresses, then sizes. A program takes a whole row of a layer,
BLOCK elements at a time; another kind of program takes a layer's few numbers.

16-bit weights compute in float32. Every helper works in a working dtype T, float32 or float64.
"""

import triton
import triton.language as tl

# Columns of the table of layers: those of Layers, of which the last, the moments, is three (M: m or b, X: max v). 0:
# there is none. Then sizes, and the number of the layer's first row among all rows.
W, G, STEP, W0, C, N, RADIUS, RM, RV, RADIUS_STEP, M, V, X, ROWS, COLS, FIRST = map(tl.constexpr, range(16))
COLUMNS = tl.constexpr(16)

# What the base does.
NOTHING, ADAMW, AMSGRAD, SGD, MOMENTUM, NESTEROV = map(tl.constexpr, range(6))

# Numbers of a layer for the move, in T. AdamW: W' = keep W - size m / (root sqrt(v) + eps).
KEEP, SIZE, ROOT, EPS, BETA1, TAKE1, BETA2, TAKE2 = map(tl.constexpr, range(8))
# SGD: b = mu b + g. The learning rate is SIZE.
DECAY, MU = KEEP, BETA1
NUMBERS = tl.constexpr(8)

FLOOR = tl.constexpr(1e-8)
#: Elements of a turn: 4 a thread with 8 warps. tests/kernels/test_triton_compile.py counts registers.
BLOCK = tl.constexpr(1024)


@triton.jit
def partials(
    layers, owners, sums, grad_scale,
    T: tl.constexpr, G_T: tl.constexpr, C_T: tl.constexpr, EXACT: tl.constexpr, MAXIMIZE: tl.constexpr,
):  # fmt: skip
    """``<g, c> / n`` of each row that has a ball. Full-size traffic: loads g, c."""
    _, layer, row, cols = _row(layers, owners)
    if tl.load(layer + RADIUS) != 0:
        factor = _factor(grad_scale, T, MAXIMIZE)
        grads, deviations = _elements(layer, G, G_T, row * cols), _elements(layer, C, C_T, row * cols)
        products = tl.zeros((BLOCK,), T)
        for start in range(0, cols, BLOCK):
            i = start + tl.arange(0, BLOCK)
            g = tl.load(grads + i, mask=i < cols, other=0.0).to(T) * factor
            products += g * tl.load(deviations + i, mask=i < cols, other=0.0).to(T)
        n = tl.load(_pointer(layer, N, T) + row)
        weight = 1 / n
        if EXACT:  # only clipped rows count
            weight = tl.where(tl.load(_pointer(layer, RADIUS, T)) <= n, weight, 0.0)
        tl.store(sums + tl.program_id(0), tl.sum(products, axis=0) * weight)


@triton.jit
def radii(
    layers, sums, packed, numbers, lr_tensor, found_inf,
    lr: tl.float64, beta1: tl.float64, beta2: tl.float64, eps: tl.float64, weight_decay: tl.float64,
    momentum: tl.float64, radius_lr: tl.float64, kappa: tl.float64,
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
    if tl.load(layer + RADIUS) != 0:
        h = _sum(sums + tl.load(layer + FIRST), tl.load(layer + ROWS))
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
    t = tl.load(step) + 1
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


@triton.jit
def move(
    layers, owners, packed, numbers, grad_scale, found_inf,
    T: tl.constexpr, W_T: tl.constexpr, G_T: tl.constexpr, W0_T: tl.constexpr, C_T: tl.constexpr,
    RULE: tl.constexpr, L2: tl.constexpr, MAXIMIZE: tl.constexpr,
):  # fmt: skip
    """The base's move of a row, its c and n, and its projection.

    Full-size traffic with AdamW: loads W, g, m, v, W0 (16-bit weights: and c), stores m, v, c, W. For the projection
    the row is read again, from the caches where it fits them. Unconstrained layers have no W0 and c: by predicate.
    """
    if found_inf is not None:
        if tl.load(found_inf) != 0:
            return
    index, layer, row, cols = _row(layers, owners)
    # 1 or 0, and a mask is made by a product: the interpreter takes no scalar for one.
    held, is_anchored = (tl.load(layer + RADIUS) != 0).to(tl.int64), (tl.load(layer + W0) != 0).to(tl.int64)
    factor = _factor(grad_scale, T, MAXIMIZE)
    first = row * cols
    weights, anchors = _elements(layer, W, W_T, first), _elements(layer, W0, W0_T, first)
    deviations, norm = _elements(layer, C, C_T, first), _pointer(layer, N, T) + row
    s = tl.full((), 1.0, T)
    if held:
        s = _scale(tl.load(_pointer(layer, RADIUS, T)), tl.load(norm), T)
    sizes = tl.zeros((BLOCK,), T)
    for start in range(0, cols, BLOCK):
        i = start + tl.arange(0, BLOCK)
        mask = i < cols
        w = tl.load(weights + i, mask=mask, other=0.0).to(T)
        w0 = tl.load(anchors + i, mask=i < cols * is_anchored, other=0.0).to(T)
        if W_T != T:
            # Working weights: W0 + s c where that rounds to W. Unconstrained: 0 + s * 0 does so where W is 0.
            kept = tl.fma(tl.load(deviations + i, mask=i < cols * held, other=0.0).to(T), s, w0)
            w = tl.where(_rounded(kept, W_T) == w, kept, w)
        w = _moved(layer, numbers + index * NUMBERS, w, factor, first, i, mask, T, G_T, RULE)
        c = w - w0
        tl.store(deviations + i, _rounded(c, C_T).to(C_T), mask=i < cols * held)
        tl.store(weights + i, _rounded(w, W_T).to(W_T), mask=mask)
        # Where the mask is off, W and W0 are 0 and no rule moves a weight of 0 along a gradient of 0, but 0 / 0 is NaN.
        sizes += _size(tl.where(mask, c, 0.0), L2)
    if held:
        n = _norm(tl.sum(sizes, axis=0), T, L2)
        tl.store(norm, n)
        s = _scale(tl.load(packed + index).to(T), n, T)
        tl.debug_barrier()  # a thread may read what another one has stored
        for start in range(0, cols, BLOCK):
            i = start + tl.arange(0, BLOCK)
            mask = i < cols
            w0 = tl.load(anchors + i, mask=i < cols * is_anchored, other=0.0).to(T)
            if W_T == T:  # W' - W0 is c to the last bit, which may be kept in fewer
                c = tl.load(weights + i, mask=mask, other=0.0) - w0
            else:
                c = tl.load(deviations + i, mask=mask, other=0.0).to(T)
            tl.store(weights + i, _rounded(tl.fma(c, s, w0), W_T).to(W_T), mask=mask)


@triton.jit
def clip(layers, packed, found_inf, T: tl.constexpr):
    """One program a layer: ``radius = min(gamma, max_i n_i)``. A NaN among the norms leaves gamma as it is."""
    if found_inf is not None:
        if tl.load(found_inf) != 0:
            return
    layer = layers + tl.program_id(0) * COLUMNS
    if tl.load(layer + RADIUS) != 0:
        rows = tl.load(layer + ROWS)
        top = tl.full((BLOCK,), FLOOR, T)
        for at in range(0, rows, BLOCK):
            i = at + tl.arange(0, BLOCK)
            n = tl.load(_pointer(layer, N, T) + i, mask=i < rows, other=0.0)
            n = tl.where(n == n, n, float("inf"))
            top = tl.where(n > top, n, top)
        largest = tl.max(top, axis=0)
        gamma = tl.load(packed + tl.program_id(0)).to(T)
        tl.store(_pointer(layer, RADIUS, T), tl.where(gamma > largest, largest, gamma))


# Elements


@triton.jit
def _moved(
    layer, numbers, w, factor, at, i, mask,
    T: tl.constexpr, G_T: tl.constexpr, RULE: tl.constexpr,
):  # fmt: skip
    """W after the base's move; stores its moments."""
    if RULE == NOTHING:
        return w
    size = tl.load(numbers + SIZE)
    g = tl.load(_elements(layer, G, G_T, at) + i, mask=mask, other=0.0).to(T) * factor
    if RULE == ADAMW or RULE == AMSGRAD:
        first = _elements(layer, M, T, at) + i
        second = _elements(layer, V, T, at) + i
        m = tl.load(first, mask=mask, other=0.0)
        v = tl.load(second, mask=mask, other=0.0)
        m = tl.load(numbers + BETA1) * m + tl.load(numbers + TAKE1) * g
        v = tl.load(numbers + BETA2) * v + tl.load(numbers + TAKE2) * g * g
        tl.store(first, m, mask=mask)
        tl.store(second, v, mask=mask)
        if RULE == AMSGRAD:
            largest = _elements(layer, X, T, at) + i
            x = tl.load(largest, mask=mask, other=0.0)
            v = tl.where((x > v) | (x != x), x, v)  # keeps NaN
            tl.store(largest, v, mask=mask)
        root = tl.load(numbers + ROOT) * tl.sqrt(v) + tl.load(numbers + EPS)
        return tl.load(numbers + KEEP) * w - size * (m / root)
    g = g + tl.load(numbers + DECAY) * w
    if RULE == SGD:
        return w - size * g
    buffer = _elements(layer, M, T, at) + i
    mu = tl.load(numbers + MU)
    b = mu * tl.load(buffer, mask=mask, other=0.0) + g
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
    total = tl.zeros((BLOCK,), tl.float64)
    for at in range(0, count, BLOCK):
        i = at + tl.arange(0, BLOCK)
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
def _row(layers, owners):
    """Of a program for a row: number of its layer, the layer's line in the table, number of the row there, columns."""
    index = tl.load(owners + tl.program_id(0)).to(tl.int64)
    layer = layers + index * COLUMNS
    return index, layer, tl.program_id(0) - tl.load(layer + FIRST), tl.load(layer + COLS)


@triton.jit
def _pointer(layer, COLUMN: tl.constexpr, T: tl.constexpr):
    return tl.load(layer + COLUMN).to(tl.pointer_type(T))


@triton.jit
def _elements(layer, COLUMN: tl.constexpr, T: tl.constexpr, at):
    """A full-size tensor from element ``at`` on."""
    return _pointer(layer, COLUMN, T) + at
