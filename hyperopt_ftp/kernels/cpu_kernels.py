"""The loops of the fused CPU step. Imports Numba.

A step is memory traffic: per weight 7 words in (g, c for the hypergradient; g, m, v, W, W0 for the move), 4 out (m, v,
c, W). A row stays in the caches between its move, its norm and its projection.

16-bit tensors come as uint16 (bfloat16) or int16 (float16) and are converted by bits: not every CPU can.
"""

# Numba's functions are not Python's: their types are found when they are compiled.
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

# Columns of the table of pieces (a layer, or some rows of a large one): addresses (0: there is none), then sizes.
W, G, W0, C, N, M, V, VMAX, ROWS, COLS = range(10)

FLOOR = 1e-8
#: Terms of a norm that are added up in working precision before float64 takes over.
RUN = np.uint64(1024)


class Kinds(NamedTuple):
    """An empty array of the dtype of each tensor; ``None`` for one that these layers do not have."""

    w: Any
    g: Any
    w0: Any
    c: Any
    n: Any
    m: Any
    v: Any
    vmax: Any


class AdamWNumbers(NamedTuple):
    """Numbers of a move by AdamW, in working precision.

    m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) is size m / (sqrt(v) + eps) with root = sqrt(1 - b2^t),
    size = root / (1 - b1^t) and root eps for eps.
    """

    scale: Any  # of g
    beta1: Any
    take1: Any  # 1 - beta1
    beta2: Any
    take2: Any
    keep: Any  # 1 - lr * weight_decay
    size: Any
    eps: Any


class SGDNumbers(NamedTuple):
    """Numbers of a move by SGD, in working precision."""

    scale: Any  # of g
    momentum: Any
    weight_decay: Any
    lr: Any
    nesterov: bool


#: Divisions by 0 as NumPy's.
_OPTIONS: Any = {"error_model": "numpy"}


def _compiled(function) -> Any:
    """Compile for threads without the interpreter's lock, and keep the code on disk where there is a place for it."""
    try:
        return njit(cache=True, nogil=True, **_OPTIONS)(function)
    except RuntimeError:  # no folder that can be written
        return njit(nogil=True, **_OPTIONS)(function)


@_compiled
def sums(table, pieces, kinds, exact, radii, out):
    """``out[i] = sum_rows <g, c> / n`` of some pieces; where ``exact``, of the rows that ``radii[i]`` clipped."""
    for i in pieces:
        g, c, n = _elements(table[i], G, kinds.g), _elements(table[i], C, kinds.c), _norms(table[i], kinds.n)
        rows, cols = _shape(table[i])
        h = 0.0
        for r in range(rows):
            dot = 0.0
            for j in range(r * cols, r * cols + cols):
                dot = _plus(dot, np.float64(_wide(g[j])) * np.float64(_wide(c[j])))
            h += dot * (0.0 if exact and not radii[i] <= n[r] else 1 / n[r])
        out[i] = h


@_compiled
def move(table, pieces, kinds, rule, square, radii, packed, tops):
    """The base's move of some pieces, their c and n, and the projection.

    Args:
        table: int64 (pieces, columns).
        pieces: positions of those to move.
        kinds: dtypes.
        rule: AdamWNumbers, SGDNumbers, or None for weights that have moved.
        square: norm="l2".
        radii: radii of the last step, in working precision; those of 16-bit weights are read.
        packed: the new radii.
        tops: float64, the largest n of each piece, is written.
    """
    for i in pieces:
        piece = table[i]
        w, g, w0 = _elements(piece, W, kinds.w), _elements(piece, G, kinds.g), _elements(piece, W0, kinds.w0)
        m, v, vmax = _elements(piece, M, kinds.m), _elements(piece, V, kinds.v), _elements(piece, VMAX, kinds.vmax)
        c, n = _elements(piece, C, kinds.c), _norms(piece, kinds.n)
        tops[i] = _move(_shape(piece), w, g, w0, c, n, m, v, vmax, rule, square, radii[i], packed[i])


@_compiled
def read(addresses, out):
    for i in range(len(addresses)):
        out[i] = carray(_pointer(addresses[i]), (1,), out.dtype)[0]


@_compiled
def write(addresses, values):
    for i in range(len(addresses)):
        carray(_pointer(addresses[i]), (1,), values.dtype)[0] = values[i]


@_compiled
def _move(shape, w, g, w0, c, n, m, v, vmax, rule, square, radius, packed):
    rows, cols = shape
    if c is None:
        for i in range(rows * cols):
            w[i] = _narrow(_moved(rule, _wide(w[i]), g, m, v, vmax, i), w)
        return 0.0
    is_wide = w.dtype == n.dtype
    top = 0.0
    for r in range(rows):
        first, last = r * cols, r * cols + cols
        s = _scale(radius, n, r)
        total = 0.0
        for start in range(first, last, RUN):
            part = n.dtype.type(0)
            for i in range(start, min(start + RUN, last)):
                anchor, old = _anchor(w0, i), _wide(w[i])
                if not is_wide:
                    # Working weights behind 16-bit ones: W0 + s c where that rounds to the stored W.
                    kept = anchor + s * _wide(c[i])
                    old = kept if _wide(_narrow(kept, w)) == old else old
                moved = _moved(rule, old, g, m, v, vmax, i)
                d = moved - anchor
                c[i] = _narrow(d, c)
                if is_wide:
                    w[i] = _narrow(moved, w)
                part = _plus(part, d * d if square else abs(d))
            total += part
        n[r] = (math.sqrt(total) if square else total) + FLOOR
        top = _larger(top, n[r])
        s = _scale(packed, n, r)
        for i in range(first, last):
            anchor = _anchor(w0, i)
            # W' - W0 is c to the last bit, also where c is kept in fewer.
            d = _wide(w[i]) - anchor if is_wide else _wide(c[i])
            w[i] = _narrow(anchor + s * d, w)
    return top


# Rules


def _moved(rule, w, g, m, v, vmax, i):
    """The weight ``w`` at position i after the base's move, which changes its moments."""
    raise NotImplementedError


@overload(_moved, jit_options=_OPTIONS)
def _moved_by(rule, w, g, m, v, vmax, i):
    rules = {AdamWNumbers: _adamw, SGDNumbers: _sgd}
    return rules.get(getattr(rule, "instance_class", None), lambda rule, w, g, m, v, vmax, i: w)


def _adamw(rule, w, g, m, v, vmax, i):
    grad = rule.scale * _wide(g[i])
    new_m = rule.beta1 * m[i] + rule.take1 * grad
    new_v = rule.beta2 * v[i] + rule.take2 * grad * grad
    m[i], v[i] = new_m, new_v
    if vmax is not None:
        new_v = _larger(vmax[i], new_v)
        vmax[i] = new_v
    return rule.keep * w - rule.size * (new_m / (math.sqrt(new_v) + rule.eps))


def _sgd(rule, w, g, m, v, vmax, i):
    direction = rule.scale * _wide(g[i]) + rule.weight_decay * w
    if m is not None:
        buffer = rule.momentum * m[i] + direction
        m[i] = buffer
        direction = direction + rule.momentum * buffer if rule.nesterov else buffer
    return w - rule.lr * direction


# Numbers


@_compiled
def _scale(radius, n, r):
    """min(radius / n, 1) of row r; keeps NaN, as torch.clamp does."""
    return n.dtype.type(1) if radius > n[r] else radius / n[r]


@_compiled
def _larger(a, b):
    """The maximum; NaN where either is, as in torch."""
    return a if a > b or a != a else b


@njit(fastmath={"reassoc"})
def _plus(total, x):
    """A term of a sum that may be added up in any order: in vectors."""
    return total + x


# Memory


@intrinsic
def _pointer(typing, address):
    def generate(context, builder, signature, args):
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


@_compiled
def _shape(piece):
    """Rows and columns, unsigned: a signed position may count from the end, and such loops are not vectorised."""
    return np.uint64(piece[ROWS]), np.uint64(piece[COLS])


def _elements(piece, column, kind):
    """A tensor of a piece, flat; None where there is none."""
    raise NotImplementedError


@overload(_elements)
def _elements_by_kind(piece, column, kind):
    if isinstance(kind, types.NoneType):
        return lambda piece, column, kind: None
    return lambda piece, column, kind: carray(_pointer(piece[column]), (piece[ROWS] * piece[COLS],), kind.dtype)


@_compiled
def _norms(piece, kind):
    return carray(_pointer(piece[N]), (piece[ROWS],), kind.dtype)


@_compiled
def _anchor(w0, i):
    if w0 is None:
        return np.float32(0)
    return _wide(w0[i])


def _wide(x):
    """A stored number as float32, or as float64 if it is one."""
    raise NotImplementedError


def _narrow(x, like):
    """``x`` as it is stored in the array ``like``; in 16 bits rounded to nearest even."""
    raise NotImplementedError


@overload(_wide)
def _wide_by_type(x):
    return {types.uint16: _from_bfloat16, types.int16: _from_float16}.get(x, lambda x: x)


@overload(_narrow)
def _narrow_by_type(x, like):
    return {types.uint16: _to_bfloat16, types.int16: _to_float16}.get(like.dtype, lambda x, like: x)


def _from_bfloat16(x):
    return np.uint32(np.uint32(x) << 16).view(np.float32)


def _to_bfloat16(x, like):
    bits = np.float32(x).view(np.uint32)
    return np.uint16((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) if x == x else np.uint16(0x7FC0)


def _from_float16(x):
    # Exponent and mantissa in a float32's place are too small by 2^112; exact, subnormal numbers included.
    magnitude = np.uint32((x & 0x7FFF) << 13)
    value = magnitude.view(np.float32) * np.float32(2.0**112)
    if magnitude >= 0x0F800000:  # infinity or NaN
        value = np.uint32(magnitude | 0x7F800000).view(np.float32)
    return -value if x < 0 else value


def _to_float16(x, like):
    bits = np.float32(x).view(np.uint32)
    magnitude = np.uint32(bits & 0x7FFFFFFF)
    if magnitude > 0x7F800000:
        half = 0x7E00  # NaN
    elif magnitude >= 0x477FF000:
        half = 0x7C00  # what rounds to infinity
    elif magnitude < 0x38800000:
        # Below 2^-14: adding 0.5 leaves the subnormal number, rounded, in the last bits.
        shifted = np.float32(magnitude.view(np.float32) + np.float32(0.5))
        half = np.int64(shifted.view(np.uint32)) - 0x3F000000
    else:
        half = (np.int64(magnitude) - 0x38000000 + 0xFFF + ((magnitude >> 13) & 1)) >> 13
    return np.int16(half | ((bits >> 16) & 0x8000))
