"""Launches of the fused CPU execution: tables of addresses, rows shared out among threads. Numba is imported when used.

Each call starts its threads and ends them: there is no pool to be lost in a fork or shared by two optimizers. A
layer's sum and its rows stay on one thread; large layers are cut into blocks of rows, always the same ones, so that a
result does not depend on the number of threads.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from .layers import PLAIN, SGD, AdamW, Amp, Ball, Layers, by_anchor_dtype, check, choose, three_moments, working_dtype

#: Elements of a layer above which it is cut, and of its blocks; fewest elements that are worth a thread.
LARGE, BLOCK, THREAD = 2**22, 2**20, 2**17


def step_(layers: Layers, base: AdamW | SGD, ball: Ball, amp: Amp = PLAIN) -> None:
    """A whole FTP step, in place."""
    from . import cpu_kernels as k

    if amp.found_inf is not None and amp.found_inf.item():
        return
    check(layers, base)
    torch._foreach_add_(layers.steps, 1.0)
    _count_empty(layers)
    for _, part in _parts(layers):
        _Call(part, ball, amp, base).run(k.SUM_PART | k.RADIUS_PART | k.MOVE_PART | k.CLIP_PART)
    torch.autograd.graph.increment_version(layers.weights)


def radii_(layers: Layers, ball: Ball, amp: Amp = PLAIN) -> Tensor:
    """Advances the radii's moments and their steps; returns the new radii, shape (layers,), not yet clipped."""
    check(layers)
    _count_empty(layers)
    wide = working_dtype(layers.weights[0])
    packed = torch.zeros(len(layers.weights), dtype=wide)
    for which, part in _parts(layers):
        call = _Call(part, ball, amp, None)
        call.run(call.kernels.SUM_PART | call.kernels.RADIUS_PART)
        packed[which] = torch.from_numpy(call.packed[call.first]).to(wide)
    return packed


def project_(layers: Layers, packed: Tensor, ball: Ball) -> None:
    """Projects moved weights: writes c, n, the clipped radii, and W."""
    check(layers)
    for which, part in _parts(layers):
        call = _Call(part, ball, PLAIN, None)
        call.packed[:] = packed[which].numpy()[call.layer]
        call.run(call.kernels.MOVE_PART | call.kernels.CLIP_PART)
    torch.autograd.graph.increment_version(layers.weights)


def _count_empty(layers: Layers) -> None:
    """Kernels advance the radii's counts, and do not see layers without elements."""
    for w, count in zip(layers.weights, layers.radius_steps, strict=True):
        if not w.numel() and count.numel():
            count.add_(1.0)


def _parts(layers: Layers) -> list[tuple[list[int], Layers]]:
    """Layers with elements, whose tensors have the same dtypes, and their positions."""
    held = [[i for i in which if layers.weights[i].numel()] for which in by_anchor_dtype(layers)]
    return [(which, choose(layers, which)) for which in held if which]


class _Call:
    """One run of the kernels over layers of the same dtypes."""

    def __init__(self, layers: Layers, ball: Ball, amp: Amp, base: AdamW | SGD | None) -> None:
        import numpy as np

        from . import cpu_kernels as kernels

        self.kernels: Any = kernels
        self.weights = str(layers.weights[0].dtype).removeprefix("torch.")
        storage = {torch.float32: "f4", torch.float64: "f8", torch.bfloat16: "u2", torch.float16: "i2"}
        w, g = layers.weights[0].dtype, layers.grads[0].dtype
        real = working_dtype(layers.weights[0])
        w0 = next((x.dtype for x in layers.anchors if x.numel()), real)
        c = next((x.dtype for x in layers.deviations if x.numel()), real)
        self.likes = [np.empty(0, storage[dtype]) for dtype in (real, w, g, w0, c)]
        self.zeros = np.zeros(kernels.LONG, storage[w0])

        table, owner = _table(layers, base)
        self.table, self.layer = np.array(table, np.int64), np.array(owner)
        self.first = np.searchsorted(self.layer, np.arange(len(layers.weights)))
        self.sums, self.packed = np.zeros(len(table)), np.zeros(len(table))

        scale = 1.0 if amp.grad_scale is None else 1.0 / float(amp.grad_scale)
        given = {"radius_lr": ball.radius_lr, "kappa": ball.kappa, "scale": -scale if amp.maximize else scale}
        given |= {} if base is None else base._asdict()
        self.rule = kernels.NOTHING if base is None else kernels.ADAMW if isinstance(base, AdamW) else kernels.SGD
        self.numbers: Any = np.zeros(kernels.NUMBERS)
        self.numbers[[getattr(kernels, name.upper()) for name in given]] = [float(value) for value in given.values()]
        self.exact, self.square = ball.exact, ball.norm == "l2"

    def run(self, parts: int) -> None:
        """Layers in one piece go through all parts at once; what is cut waits between them."""
        from .cpu_notice import announced

        k = self.kernels
        is_cut = self.table[:, k.COUNT] != 1
        cut, firsts = is_cut.nonzero()[0], self.first[is_cut[self.first]]
        with announced(self.weights):
            self._share_out(cut, parts & k.SUM_PART)
            self._share_out(firsts, parts & k.RADIUS_PART)
            self._share_out(cut, parts & k.MOVE_PART)
            self._share_out((~is_cut).nonzero()[0], parts)
            self._share_out(firsts, parts & k.CLIP_PART)

    def _share_out(self, pieces: Any, parts: int) -> None:
        """Run parts of the pieces on as many threads as torch uses, the largest pieces first."""
        import numpy as np

        if not len(pieces) or not parts:
            return
        sizes: Any = self.table[pieces, self.kernels.ROWS] * self.table[pieces, self.kernels.COLS]
        threads = max(1, min(torch.get_num_threads(), len(pieces), int(sizes.sum()) // THREAD))
        loads, shares = [0] * threads, [[] for _ in range(threads)]
        for i in np.argsort(-sizes, kind="stable"):
            least = loads.index(min(loads))
            shares[least].append(pieces[i])
            loads[least] += sizes[i]
        jobs = [np.array(sorted(share), np.int64) for share in shares]
        if threads == 1:
            self._run(jobs[0], parts)
            return
        with ThreadPoolExecutor(threads - 1) as pool:
            others = [pool.submit(self._run, job, parts) for job in jobs[1:]]
            self._run(jobs[0], parts)
            for other in others:
                other.result()

    def _run(self, pieces: Any, parts: int) -> None:
        import numpy as np

        scratch = np.empty(self.kernels.SCRATCH, self.likes[0].dtype)
        self.kernels.run(
            self.table, pieces, parts, self.rule, self.numbers, self.exact, self.square, *self.likes,
            self.zeros.ctypes.data, self.sums, self.packed, scratch.ctypes.data,
        )  # fmt: skip


def _table(layers: Layers, base: AdamW | SGD | None) -> tuple[list[list[int]], list[int]]:
    """Rows of the kernels' table of pieces, and the layer of each."""
    moments = _, v, _ = three_moments(layers, base)
    wide = working_dtype(layers.weights[0]).itemsize
    widths = [next((t.element_size() for t in column if t.numel()), 0) for column in layers[:2] + layers[3:5]]
    table, owner = [], []
    for i, w in enumerate(layers.weights):
        n = layers.norms[i]
        size, count = w.numel(), n.numel() or 1
        # 0 is the address of a tensor without elements.
        addresses = [
            w.data_ptr(), layers.grads[i].data_ptr(), layers.anchors[i].data_ptr(), layers.deviations[i].data_ptr(),
            n.data_ptr(), *(column[i].data_ptr() if column else 0 for column in moments),
        ]  # fmt: skip
        fixed = [column[i].data_ptr() for column in (layers.steps, *layers[6:10])]
        cols = size // count
        if size <= LARGE:
            table.append([*addresses, *fixed, count, cols, 1, count])
            owner.append(i)
            continue
        block = max(1, BLOCK // cols)
        strides = [*(width * cols for width in widths), wide, wide * cols, wide * cols, wide * cols if v else 0]
        for r in range(0, count, block):
            places = [a and a + r * stride for a, stride in zip(addresses, strides, strict=True)]
            table.append([*places, *fixed, min(block, count - r), cols, -(-count // block), count])
            owner.append(i)
    return table, owner
