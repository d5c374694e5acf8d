"""The fused CPU step of a list of layers: rows through the caches, one after the other. Imports Numba.

A step is memory traffic: per weight 7 words in (g, c for the radius; g, m, v, W, W0 for the move), 4 out (m, v, c, W).
A row stays in the caches between its moved weights, its norm and its projection.
"""

# Numba's functions are not Python's: their types are found when they are compiled.
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import hashlib
import inspect
import math
import sys

import numpy as np
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from . import cpu_lines as lines

# Columns of the table of pieces (a layer, or some rows of a large one): addresses (0: there is none), then sizes. COUNT
# is the number of pieces of the layer, ALL_ROWS that of its rows.
W, G, W0, C, N, M, V, X, STEP, RADIUS, RADIUS_M, RADIUS_V, RADIUS_STEP, ROWS, COLS, COUNT, ALL_ROWS = range(17)
COLUMNS = 17  # X: max v, or the step at which b was made

# Numbers of the rule, by the names in ``layers``.
LR, BETA1, BETA2, EPS, WEIGHT_DECAY, MOMENTUM, DAMPENING, NESTEROV, RADIUS_LR, KAPPA, SCALE = range(11)
NUMBERS = 11

ADAMW, SGD, NOTHING = range(3)  #: rules
SUM_PART, RADIUS_PART, MOVE_PART, CLIP_PART = 1, 2, 4, 8  #: parts of a step

FLOOR = 1e-8
#: Elements that are worth loops of their own: shorter rows are moved several at a time.
SHORT = 512
#: Columns up to which a row's deviation waits in scratch for its norm; longer rows read W a second time.
LONG = 8192
SCRATCH = 2 * LONG + 16


def _compiled(function):
    """Compile for threads without the interpreter's lock, and keep the code on disk where there is a place for it.

    Numba finds code on disk by the function's name, and takes it for current if this file has not changed. What is
    emitted by ``cpu_lines`` is in it too: so the name gets a hash of both sources.
    """
    options = {"nogil": True, "error_model": "numpy"}
    try:
        sources = "".join(inspect.getsource(module) for module in (lines, sys.modules[__name__]))
        function.__qualname__ += f"_{hashlib.sha256(sources.encode()).hexdigest()[:16]}"
        return njit(cache=True, **options)(function)
    except (RuntimeError, OSError):  # no folder that can be written, or no sources
        return njit(**options)(function)


@intrinsic
def _pointer(typing, address):
    def generate(context, builder, signature, args):
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


@intrinsic
def _fence(typing):
    """Streamed stores become visible before what follows."""

    def generate(context, builder, signature, args):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@_compiled
def _view(address, start, stop, like):
    return carray(_pointer(address + start * like.itemsize), (stop - start,), like.dtype)


def _in_place(w, scratch):
    """``w`` itself where it is in working precision."""
    raise NotImplementedError


@overload(_in_place, inline="always")
def _in_place_of(w, scratch):
    if w.dtype == scratch.dtype:
        return lambda w, scratch: w
    return lambda w, scratch: scratch


@_compiled
def _coefficients(rule, numbers, t, fresh, out):
    """Numbers of the loops, the same for a whole layer."""
    out[0] = numbers[SCALE]
    if rule == ADAMW:
        # m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) with r = sqrt(1 - b2^t): r / (1 - b1^t) m / (sqrt(v) + r eps).
        b1, b2 = numbers[BETA1], numbers[BETA2]
        root = math.sqrt(1 - b2**t)
        out[1], out[2], out[3], out[4] = b1, 1 - b1, b2, 1 - b2
        out[5] = 1 - numbers[LR] * numbers[WEIGHT_DECAY]
        out[6] = numbers[LR] * root / (1 - b1**t)
        out[7] = root * numbers[EPS]
    else:
        out[1], out[2] = numbers[MOMENTUM], 1.0 if fresh else 1 - numbers[DAMPENING]
        out[3], out[4] = numbers[WEIGHT_DECAY], numbers[LR]


@_compiled
def _base_move(rule, nesterov, k, square, x, d, w0, g, m, v, vmax, c):
    """The base's move of the working weights x; d and c become the deviation. Returns the sum of its norm."""
    if rule == ADAMW:
        if vmax.size:
            return lines.adamw(k, square, (x, d, w0, g, m, v, vmax, c))
        return lines.adamw(k, square, (x, d, w0, g, m, v, None, c))
    if rule == SGD:
        if k[1] == 0:
            return lines.sgd(k, square, (x, d, w0, g, None, None, c))
        if nesterov:
            return lines.sgd(k, square, (x, d, w0, g, m, k, c))
        return lines.sgd(k, square, (x, d, w0, g, m, None, c))
    return lines.subtract(k, square, (x, d, w0, c))


@_compiled
def run(
    table,
    work,
    parts,
    rule,
    numbers,
    exact,
    square,
    t_like,
    w_like,
    g_like,
    w0_like,
    c_like,
    zeros,
    sums,
    packed,
    scratch,
):
    """Parts of the step of some pieces, one after the other.

    Args:
        table: int64 (pieces, COLUMNS).
        work: the pieces to do; for RADIUS_PART and CLIP_PART first pieces of layers.
        parts: SUM_PART: <g, c> / n to ``sums``. RADIUS_PART: the new radius to ``packed``. MOVE_PART: the base's move,
            c and n, the projection. CLIP_PART: the radius, at most the largest n.
        rule: ADAMW, SGD or NOTHING.
        numbers: float64 (NUMBERS,).
        exact, square: gradient="exact", norm="l2".
        t_like, w_like, g_like, w0_like, c_like: empty arrays of the dtypes in use.
        zeros: address of LONG zeros of the anchors' dtype.
        sums: float64 (pieces,).
        packed: float64 (pieces,), new radii before the clip.
        scratch: address of SCRATCH numbers in working precision.
    """
    # Addresses, not arrays: to slice an array costs more than to move a short row.
    k = _view(scratch, 2 * LONG, 2 * LONG + 8, t_like)
    for i in work:
        piece = table[i]
        if piece[C] == 0:
            if parts & MOVE_PART:
                _move_free(piece, rule, numbers, k, t_like, w_like, g_like, w0_like, zeros, scratch)
            continue
        if parts & SUM_PART:
            sums[i] = _sum(piece, exact, k, t_like, g_like, c_like)
        if parts & RADIUS_PART:
            pieces = slice(i, i + piece[COUNT])
            packed[pieces] = _radius(piece, numbers, sums[pieces].sum(), t_like)
        if parts & MOVE_PART:
            _move(piece, rule, numbers, square, packed[i], k, t_like, w_like, g_like, w0_like, c_like, zeros, scratch)
        if parts & CLIP_PART:
            _clip(piece, packed[i], t_like)
    _fence()


@_compiled
def _sum(piece, exact, k, t_like, g_like, c_like):
    """``sum_i <g_i, c_i> / n_i``, four rows from far apart at a time."""
    rows, cols = piece[ROWS], piece[COLS]
    n, radius = _view(piece[N], 0, rows, t_like), _view(piece[RADIUS], 0, 1, t_like)
    apart = rows // 4
    h = 0.0
    for r in range(apart):
        for i in range(4):
            k[i] = _weight(n[r + i * apart], radius[0], exact)
        for p in range(0, cols, LONG):
            q = min(p + LONG, cols)
            h += lines.dots(
                k, False,
                _pair(piece, r, p, q, g_like, c_like)
                + _pair(piece, r + apart, p, q, g_like, c_like)
                + _pair(piece, r + 2 * apart, p, q, g_like, c_like)
                + _pair(piece, r + 3 * apart, p, q, g_like, c_like),
            )  # fmt: skip
    for r in range(4 * apart, rows):
        k[0] = _weight(n[r], radius[0], exact)
        for p in range(0, cols, LONG):
            h += lines.dots(k, False, _pair(piece, r, p, min(p + LONG, cols), g_like, c_like))
    return h


@_compiled
def _weight(n, radius, exact):
    return 0.0 if exact and not radius <= n else 1.0 / n


@_compiled
def _pair(piece, row, start, stop, g_like, c_like):
    """Some columns of g and of c."""
    a, b = row * piece[COLS] + start, row * piece[COLS] + stop
    return _view(piece[G], a, b, g_like), _view(piece[C], a, b, c_like)


@_compiled
def _count(address):
    """A count of steps; 0 where nobody counts them."""
    return 0.0 if address == 0 else carray(_pointer(address), (1,), np.float32)[0] + 0.0


@_compiled
def _radius(piece, numbers, h, t_like):
    """Adam on the radius along h, in float64."""
    radius = _view(piece[RADIUS], 0, 1, t_like)
    m, v = _view(piece[RADIUS_M], 0, 1, t_like), _view(piece[RADIUS_V], 0, 1, t_like)
    count = carray(_pointer(piece[RADIUS_STEP]), (1,), np.float32)
    count[0] += 1
    t = count[0] + 0.0
    h *= numbers[SCALE]
    if h > 0:
        h *= numbers[KAPPA]
    m[0] = 0.9 * m[0] + (1 - 0.9) * h
    v[0] = 0.999 * v[0] + (1 - 0.999) * h * h
    size = numbers[RADIUS_LR] / (1 - 0.9**t)
    gamma = radius[0] - size * m[0] / (math.sqrt(v[0] / (1 - 0.999**t)) + 1e-8)
    return FLOOR if gamma < FLOOR else gamma


@_compiled
def _clip(piece, gamma, t_like):
    top = t_like.dtype.type(FLOOR)
    for n in _view(piece[N], 0, piece[ALL_ROWS], t_like):
        top = n if n > top or n != n else top
    _view(piece[RADIUS], 0, 1, t_like)[0] = top if gamma > top else gamma


@_compiled
def _started(piece, rule, t):
    """Whether SGD's buffer is made in this step."""
    return rule == SGD and piece[X] != 0 and _count(piece[X]) == t - 1


@_compiled
def _move_free(piece, rule, numbers, k, t_like, w_like, g_like, w0_like, zeros, scratch):
    """The base's move of a layer without a ball."""
    size = piece[ROWS] * piece[COLS]
    t = _count(piece[STEP])
    _coefficients(rule, numbers, t, _started(piece, rule, t), k)
    amsgrad = rule == ADAMW and piece[X] != 0
    for p in range(0, size, LONG):
        q = min(p + LONG, size)
        w, w0 = _view(piece[W], p, q, w_like), _view(zeros, 0, q - p, w0_like)
        x = _in_place(w, _view(scratch, 0, q - p, t_like))
        if w.itemsize != x.itemsize:
            lines.load(k, False, (w, x))
        g, m, v = _view(piece[G], p, q, g_like), _view(piece[M], p, q, t_like), _view(piece[V], p, q, t_like)
        vmax = _view(piece[X], p, q if amsgrad else p, t_like)
        _base_move(rule, numbers[NESTEROV] != 0, k, False, x, None, w0, g, m, v, vmax, None)
        if w.itemsize != x.itemsize:
            lines.store(k, False, (x, w))


@_compiled
def _move(piece, rule, numbers, square, gamma, k, t_like, w_like, g_like, w0_like, c_like, zeros, scratch):
    """The base's move, c and n; then the projection with radius ``gamma``."""
    real = t_like.dtype.type
    rows, cols = piece[ROWS], piece[COLS]
    n, radius = _view(piece[N], 0, rows, t_like), _view(piece[RADIUS], 0, 1, t_like)
    t = _count(piece[STEP])
    _coefficients(rule, numbers, t, _started(piece, rule, t), k)
    one = _view(scratch, 2 * LONG + 8, 2 * LONG + 9, t_like)  # the number of a row's loops
    amsgrad, nesterov = rule == ADAMW and piece[X] != 0, numbers[NESTEROV] != 0
    anchored, same = piece[W0] != 0, w_like.dtype == t_like.dtype

    whole = cols <= LONG
    per = max(1, SHORT // max(cols, 1)) if whole else 1
    for r0 in range(0, rows, per):
        r1 = min(r0 + per, rows)
        size = (r1 - r0) * cols if whole else LONG
        total = 0.0
        for p in range(r0 * cols, r1 * cols, size):
            q = min(p + size, r1 * cols)
            w, d = _view(piece[W], p, q, w_like), _view(scratch, LONG, LONG + q - p, t_like)
            w0 = _view(piece[W0], p, q, w0_like) if anchored else _view(zeros, 0, q - p, w0_like)
            x, c = _in_place(w, _view(scratch, 0, q - p, t_like)), _view(piece[C], p, q, c_like)
            if not same:
                for r in range(r0, r1):
                    a, b = max(p, r * cols) - p, min(q, (r + 1) * cols) - p
                    one[0] = _clamped(radius[0], n[r])
                    lines.restore(one, False, (x[a:b], w[a:b], w0[a:b], c[a:b]))
            g, m, v = _view(piece[G], p, q, g_like), _view(piece[M], p, q, t_like), _view(piece[V], p, q, t_like)
            vmax = _view(piece[X], p, q if amsgrad else p, t_like)
            total += _base_move(rule, nesterov, k, square, x, d, w0, g, m, v, vmax, c)
            if whole:
                for r in range(r0, r1):
                    a, b = (r - r0) * cols, (r - r0 + 1) * cols
                    if r1 - r0 > 1:
                        total = lines.norm_sum(k, square, (d[a:b],))
                    n[r] = _norm(total, square)
                    one[0] = _clamped(real(gamma), n[r])
                    lines.scale_rows(one, False, (w[a:b], w0[a:b], d[a:b]))
        if not whole:
            n[r0] = _norm(total, square)
            one[0] = _clamped(real(gamma), n[r0])
            for p in range(r0 * cols, r1 * cols, LONG):
                q = min(p + LONG, r1 * cols)
                w, d = _view(piece[W], p, q, w_like), _view(scratch, LONG, LONG + q - p, t_like)
                w0 = _view(piece[W0], p, q, w0_like) if anchored else _view(zeros, 0, q - p, w0_like)
                if same:  # the moved weights stand in W; c may be kept in fewer bits
                    lines.subtract(k, False, (w, d, w0, None))
                else:
                    lines.load(k, False, (_view(piece[C], p, q, c_like), d))
                lines.scale_rows(one, False, (w, w0, d))


@_compiled
def _norm(total, square):
    return (math.sqrt(total) if square else total) + FLOOR


@_compiled
def _clamped(radius, n):
    """min(radius / n, 1) that keeps NaN, as torch.clamp does."""
    s = radius / n
    return 1.0 if s > 1 else s
