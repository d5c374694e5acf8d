"""The loops of the fused CPU step, as code in vectors of a cache line. Imports Numba.

Each rule is written once, for vectors of any length, and emitted three times: for single numbers up to the first line
boundary of c, for whole lines, and for the rest. Left to itself the compiler would vectorise the arithmetic as well,
but not stream c past the caches in between (a plain store first reads the line that it replaces), and then either the
arithmetic or the memory waits.

Plain Numba loops were tried (Numba 0.68, AMD EPYC, one thread; one intrinsic streams c). They vectorise, but the least
CPU time of a step (ViT-B/16, Swin-T; AdamW, SGD) was 1.00 to 1.06 times this code's in float32, 1.05 to 1.10 times in
lean, 0.97 to 1.07 times in bfloat16; this code against itself gave 0.98 to 1.04. With the norm's sum in the loop of the
move, LLVM unrolls it by four lines (lean: 1.13 times); in a loop of its own it costs 3 to 5 %. Compiling took as long
for float32, and 10 to 20 % longer for lean and bfloat16.

16-bit tensors come as uint16 (bfloat16) or int16 (float16) and are converted by bits: not every CPU can.
"""

# llvmlite's stubs lack the flags of its arithmetic.
# pyright: reportCallIssue=false, reportAttributeAccessIssue=false, reportOptionalMemberAccess=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

#: Bytes of a cache line, and lines (or single numbers) that are summed in working precision before float64 takes over.
LINE, RUN = 64, 64
I16, I32, I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
F32, F64 = ir.FloatType(), ir.DoubleType()

#: Storage by the type of an array's elements.
STORED = {types.float32: F32, types.float64: F64, types.uint16: I16, types.int16: I16}
WIDTH = {types.float32: 4, types.float64: 8, types.uint16: 2, types.int16: 2}


class Column:
    """One array of a loop."""

    def __init__(self, pointer: Any, stored: Any) -> None:
        self.pointer, self.stored = pointer, stored


class Lanes:
    """Arithmetic on ``lanes`` numbers at ``index``, in working precision ``real``."""

    def __init__(self, builder: ir.IRBuilder, real: Any, lanes: int, index: Any) -> None:
        self.builder, self.lanes, self.index = builder, lanes, index
        self.real = self.of(real)

    def of(self, element: Any) -> Any:
        return ir.VectorType(element, self.lanes) if self.lanes > 1 else element

    def fill(self, number: Any) -> Any:
        """One number in all lanes."""
        if self.lanes == 1:
            return number
        one = self.builder.insert_element(ir.Constant(self.of(number.type), ir.Undefined), number, I32(0))
        return self.builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(I32, self.lanes), [0] * self.lanes))

    def constant(self, element: Any, value: float) -> Any:
        return ir.Constant(self.of(element), [value] * self.lanes if self.lanes > 1 else value)

    def add(self, a: Any, b: Any) -> Any:
        return self.builder.fadd(a, b, flags=("contract",))

    def subtract(self, a: Any, b: Any) -> Any:
        return self.builder.fsub(a, b, flags=("contract",))

    def multiply(self, a: Any, b: Any) -> Any:
        return self.builder.fmul(a, b, flags=("contract",))

    def divide(self, a: Any, b: Any) -> Any:
        return self.builder.fdiv(a, b)

    def _call(self, name: str, x: Any) -> Any:
        return self.builder.call(_declared(self.builder, name, x.type, [x.type]), [x])

    def root(self, x: Any) -> Any:
        return self._call("llvm.sqrt", x)

    def size(self, x: Any, square: Any) -> Any:
        """x^2 where ``square`` is true, else |x|."""
        return self.select(square, self.multiply(x, x), self._call("llvm.fabs", x))

    def select(self, condition: Any, a: Any, b: Any) -> Any:
        return self.builder.select(condition, a, b)

    def larger(self, a: Any, b: Any) -> Any:
        """The maximum; NaN where either is, as in torch."""
        kept = self.builder.select(self.builder.fcmp_unordered(">", a, b), a, b)
        return self.builder.select(self.builder.fcmp_ordered("ord", b, b), kept, b)

    def _place(self, column: Column) -> Any:
        element = STORED[column.stored]
        one = self.builder.gep(self.builder.bitcast(column.pointer, element.as_pointer()), [self.index])
        return self.builder.bitcast(one, self.of(element).as_pointer())

    def load(self, column: Column) -> Any:
        x = self.builder.load(self._place(column), align=WIDTH[column.stored])
        if column.stored == types.uint16:
            wide = self.builder.shl(self.builder.zext(x, self.of(I32)), self.constant(I32, 16))
            x = self.builder.bitcast(wide, self.of(F32))
        elif column.stored == types.int16:
            x = self._from_half(self.builder.zext(x, self.of(I32)))
        return x if x.type == self.real else self.builder.fpext(x, self.real)

    def store(self, x: Any, column: Column, stream: bool = False) -> None:
        """Round to nearest even and store; ``stream``: past the caches, where the column begins at a line."""
        narrow = {types.uint16: self._to_bfloat, types.int16: self._to_half}.get(column.stored)
        width = WIDTH[column.stored]
        store = self.builder.store(narrow(x) if narrow else x, self._place(column), align=width)
        if stream and width * self.lanes == LINE:
            store.align = LINE
            store.set_metadata("nontemporal", self.builder.module.add_metadata([I32(1)]))

    def rounded(self, x: Any, column: Column) -> Any:
        """``x`` as it would come back from ``column``."""
        if column.stored not in (types.uint16, types.int16):
            return x
        if column.stored == types.uint16:
            wide = self.builder.shl(self.builder.zext(self._to_bfloat(x), self.of(I32)), self.constant(I32, 16))
            return self.builder.bitcast(wide, self.of(F32))
        return self._from_half(self.builder.zext(self._to_half(x), self.of(I32)))

    def _from_half(self, bits: Any) -> Any:
        # Exponent and mantissa in a float32's place are too small by 2^112; exact, subnormal numbers included.
        b, constant = self.builder, self.constant
        magnitude = b.shl(b.and_(bits, constant(I32, 0x7FFF)), constant(I32, 13))
        value = b.bitcast(b.fmul(b.bitcast(magnitude, self.of(F32)), constant(F32, 2.0**112)), self.of(I32))
        special = b.icmp_unsigned(">=", magnitude, constant(I32, 0x0F800000))  # infinity or NaN
        value = b.select(special, b.or_(value, constant(I32, 0x7F800000)), value)
        sign = b.shl(b.and_(bits, constant(I32, 0x8000)), constant(I32, 16))
        return b.bitcast(b.or_(value, sign), self.of(F32))

    def _to_bfloat(self, x: Any) -> Any:
        b, constant = self.builder, self.constant
        bits = b.bitcast(x, self.of(I32))
        odd = b.and_(b.lshr(bits, constant(I32, 16)), constant(I32, 1))
        up = b.lshr(b.add(b.add(bits, constant(I32, 0x7FFF)), odd), constant(I32, 16))
        return b.trunc(b.select(b.fcmp_ordered("ord", x, x), up, constant(I32, 0x7FC0)), self.of(I16))

    def _to_half(self, x: Any) -> Any:
        b, constant = self.builder, self.constant
        bits = b.bitcast(x, self.of(I32))
        magnitude = b.and_(bits, constant(I32, 0x7FFFFFFF))
        # Below 2^-14: adding 0.5 leaves the subnormal number, rounded, in the last bits.
        half = b.fadd(b.bitcast(magnitude, self.of(F32)), constant(F32, 0.5))
        small = b.sub(b.bitcast(half, self.of(I32)), constant(I32, 0x3F000000))
        odd = b.and_(b.lshr(magnitude, constant(I32, 13)), constant(I32, 1))
        normal = b.add(b.sub(magnitude, constant(I32, 0x38000000)), b.add(constant(I32, 0xFFF), odd))
        value = b.lshr(normal, constant(I32, 13))
        value = b.select(b.icmp_unsigned("<", magnitude, constant(I32, 0x38800000)), small, value)
        infinite = b.icmp_unsigned(">=", magnitude, constant(I32, 0x477FF000))  # what rounds to infinity
        value = b.select(infinite, constant(I32, 0x7C00), value)
        value = b.select(b.icmp_unsigned(">", magnitude, constant(I32, 0x7F800000)), constant(I32, 0x7E00), value)
        sign = b.and_(b.lshr(bits, constant(I32, 16)), constant(I32, 0x8000))
        return b.trunc(b.or_(value, sign), self.of(I16))


def _declared(builder: ir.IRBuilder, name: str, over: Any, inputs: list[Any], output: Any = None) -> Any:
    """LLVM's function ``name`` for numbers or vectors ``over``."""
    element, lanes = (over.element, f"v{over.count}") if isinstance(over, ir.VectorType) else (over, "")
    name = f"{name}.{lanes}{'f32' if element == F32 else 'f64'}"
    shape = ir.FunctionType(over if output is None else output, inputs)
    return cgutils.get_or_insert_function(builder.module, shape, name)


def _loop(body: Callable[..., Any], streamed: int | None = None, count_of_numbers: int = 0) -> Any:
    """A Numba function ``(numbers, flag, columns) -> sum`` that runs ``body`` over arrays of one length.

    Args:
        body: ``body(lanes, numbers, flag, *columns)``, which may return a term of the sum.
        streamed: position of the column whose line boundaries count.

    The function takes an array of numbers of working precision, a bool, and a tuple of arrays, ``None`` for one that
    there is not.
    """

    @intrinsic
    def emitted(typing, numbers, flag, columns):
        real_type = numbers.dtype

        def generate(context, builder, signature, args):
            real = STORED[real_type]
            lanes = LINE // WIDTH[real_type]
            inputs: list[Column | None] = []
            count = None
            for type_, value in zip(columns, cgutils.unpack_tuple(builder, args[2]), strict=True):
                if isinstance(type_, types.NoneType):
                    inputs.append(None)
                    continue
                array = context.make_array(type_)(context, builder, value)
                inputs.append(Column(array.data, type_.dtype))
                count = array.nitems if count is None else count
            given = context.make_array(numbers)(context, builder, args[0]).data

            loaded = [builder.load(builder.gep(given, [I64(k)])) for k in range(count_of_numbers)]

            head = I64(0)
            column = None if streamed is None else inputs[streamed]
            if column is not None:
                address = builder.ptrtoint(column.pointer, I64)
                bytes_ = builder.and_(builder.neg(address), I64(LINE - 1))
                head = builder.udiv(bytes_, I64(WIDTH[column.stored]))
                head = builder.select(builder.icmp_signed("<", head, count), head, count)
            whole = builder.add(head, builder.and_(builder.sub(count, head), I64(-lanes)))
            total = cgutils.alloca_once_value(builder, ir.Constant(F64, 0.0))
            for first, last, width in ((I64(0), head, 1), (head, whole, lanes), (whole, count, 1)):
                kind = ir.VectorType(real, width) if width > 1 else real
                zero = ir.Constant(kind, [0.0] * width if width > 1 else 0.0)
                sums = cgutils.alloca_once(builder, kind)
                with cgutils.for_range_slice(builder, first, last, I64(RUN * width), intp=I64) as (start, _):
                    stop = builder.add(start, I64(RUN * width))
                    stop = builder.select(builder.icmp_signed("<", stop, last), stop, last)
                    builder.store(zero, sums)
                    with cgutils.for_range_slice(builder, start, stop, I64(width), intp=I64) as (index, _):
                        now = Lanes(builder, real, width, index)
                        term = body(now, lambda k, now=now: now.fill(loaded[k]), args[1], *inputs)
                        if term is not None:
                            builder.store(now.add(builder.load(sums), term), sums)
                    found = builder.load(sums)
                    if width > 1:
                        reduce = _declared(builder, "llvm.vector.reduce.fadd", kind, [real, kind], real)
                        found = builder.call(reduce, [ir.Constant(real, 0.0), found], fastmath=("reassoc",))
                    found = found if real is F64 else builder.fpext(found, F64)
                    builder.store(builder.fadd(builder.load(total), found), total)
            return builder.load(total)

        return types.float64(numbers, flag, columns), generate

    return emitted


def _adamw(now, number, square, x, d, w0, g, m, v, vmax, c):
    """x <- the moved weights, d and c <- x - W0, the moments in place; sums the norm of d.

    Numbers: scale of g, b1, 1 - b1, b2, 1 - b2, 1 - lr * weight_decay, size of the move, eps.
    """
    scale, b1, a1, b2, a2, keep, size, eps = (number(k) for k in range(8))
    g = now.multiply(scale, now.load(g))
    new_m = now.add(now.multiply(b1, now.load(m)), now.multiply(a1, g))
    new_v = now.add(now.multiply(b2, now.load(v)), now.multiply(now.multiply(a2, g), g))
    now.store(new_m, m)
    now.store(new_v, v)
    if vmax is not None:
        new_v = now.larger(now.load(vmax), new_v)
        now.store(new_v, vmax)
    direction = now.divide(new_m, now.add(now.root(new_v), eps))
    new_x = now.subtract(now.multiply(keep, now.load(x)), now.multiply(size, direction))
    return _moved(now, square, new_x, x, d, w0, c)


def _sgd(now, number, square, x, d, w0, g, b, nesterov, c):
    """As :func:`_adamw`. Numbers: scale of g, momentum, factor of g in b, weight_decay, lr."""
    scale, momentum, take, decay, lr = (number(k) for k in range(5))
    old = now.load(x)
    direction = now.add(now.multiply(scale, now.load(g)), now.multiply(decay, old))
    if b is not None:
        buffer = now.add(now.multiply(momentum, now.load(b)), now.multiply(take, direction))
        now.store(buffer, b)
        direction = buffer if nesterov is None else now.add(direction, now.multiply(momentum, buffer))
    return _moved(now, square, now.subtract(old, now.multiply(lr, direction)), x, d, w0, c)


def _subtract(now, number, square, x, d, w0, c):
    return _moved(now, square, now.load(x), None, d, w0, c)


def _moved(now, square, value, x, d, w0, c):
    if x is not None:
        now.store(value, x)
    deviation = now.subtract(value, now.load(w0)) if w0 is not None else value
    if d is not None:
        now.store(deviation, d)
    if c is not None:
        now.store(deviation, c, stream=True)
    return now.size(deviation, square)


def _dots(now, number, flag, *rows):
    """``sum_i w_i <g_i, c_i>`` of rows g, c, g, c, ...; numbers: their weights. More streams at once read faster."""
    total = None
    for i, (g, c) in enumerate(zip(rows[::2], rows[1::2], strict=True)):
        term = now.multiply(number(i), now.multiply(now.load(g), now.load(c)))
        total = term if total is None else now.add(total, term)
    return total


def _norm_sum(now, number, square, d):
    return now.size(now.load(d), square)


def _load(now, number, flag, w, x):
    now.store(now.load(w), x)


def _restore(now, number, flag, x, w, w0, c):
    """Working weights behind 16-bit ones: W0 + s c where that rounds to the stored W. Number: s."""
    kept = now.multiply(number(0), now.load(c))
    kept = kept if w0 is None else now.add(now.load(w0), kept)
    stored = now.load(w)
    now.store(now.select(now.builder.fcmp_ordered("==", now.rounded(kept, w), stored), kept, stored), x)


def _scale_rows(now, number, flag, w, w0, d):
    """W <- W0 + s d. Number: s."""
    moved = now.multiply(number(0), now.load(d))
    now.store(moved if w0 is None else now.add(now.load(w0), moved), w)


adamw, sgd, subtract = _loop(_adamw, 7, 8), _loop(_sgd, 6, 5), _loop(_subtract, 3)
dots, norm_sum, load, store = _loop(_dots, None, 4), _loop(_norm_sum), _loop(_load), _loop(_load)
restore, scale_rows = _loop(_restore, None, 1), _loop(_scale_rows, None, 1)
