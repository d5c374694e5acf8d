"""Launches of the fused CPU execution: tables of addresses, pieces shared out among threads. Imports Numba when used.

Each call starts its threads and ends them: there is no pool to be lost in a fork or shared by two optimizers. A row
stays on one thread; large layers are cut into blocks of rows, always the same ones, so that a result does not depend on
the number of threads.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from . import foreach
from .layers import PLAIN, SGD, AdamW, Amp, Ball, Layers, check, choose, working_dtype

#: Elements of a layer above which it is cut, and of its blocks; fewest elements that are worth a thread.
LARGE, BLOCK, THREAD = 2**22, 2**20, 2**17

#: How NumPy, and so Numba, sees 16-bit numbers.
BITS = {torch.bfloat16: torch.uint16, torch.float16: torch.int16}


def step_(layers: Layers, base: AdamW | SGD, ball: Ball, amp: Amp = PLAIN) -> None:
    """A whole FTP step, in place."""
    if amp.found_inf is not None and amp.found_inf.item():
        return
    check(layers, base)
    _advance(layers.steps)
    _advance(layers.radius_steps)
    for part in _parts(layers, base):
        part.move_(part.new_radii_(ball, amp), ball, amp)


def radii_(layers: Layers, ball: Ball, amp: Amp = PLAIN) -> Tensor:
    """Advances the radii's moments and their steps; returns the new radii, shape (layers,), not yet clipped."""
    check(layers)
    _advance(layers.radius_steps)
    packed = torch.zeros(len(layers.weights), dtype=working_dtype(layers.weights[0]), device="cpu")
    for part in _parts(layers, None):
        packed[part.which] = part.new_radii_(ball, amp)
    return packed


def project_(layers: Layers, packed: Tensor, ball: Ball) -> None:
    """Projects moved weights: writes c, n, the clipped radii, and W."""
    check(layers)
    for part in _parts(layers, None):
        part.move_(packed[part.which], ball, PLAIN)


def _parts(layers: Layers, base: AdamW | SGD | None) -> list[_Part]:
    """Layers with elements, by the dtypes of their tensors and by their steps."""
    alike: dict[Hashable, list[int]] = {}
    for i, w in enumerate(layers.weights):
        if w.numel():
            kinds = [x.dtype if x.numel() else None for x in (layers.anchors[i], layers.deviations[i])]
            step = None if base is None else float(layers.steps[i])
            alike.setdefault((*kinds, step), []).append(i)
    return [_Part(layers, which, base) for which in alike.values()]


class _Part:
    """Some layers, whose tensors have the same dtypes, cut into pieces, as the kernels take them."""

    def __init__(self, layers: Layers, which: list[int], base: AdamW | SGD | None) -> None:
        from . import cpu_kernels

        self.kernels: Any = cpu_kernels
        self.which, self.base = which, base
        self.layers = layers = choose(layers, which)
        self.real = torch.empty(0, dtype=working_dtype(layers.weights[0]), device="cpu")
        self.has_ball = layers.radii[0].numel() > 0
        self.radii = _Numbers(layers.radii).read() if self.has_ball else self.real.new_zeros(len(which))
        moments = [] if base is None else layers.moments
        columns = [layers.weights, layers.grads, layers.anchors, layers.deviations, layers.norms, *moments]
        columns = [column if column[0].numel() else [] for column in columns]
        columns += [[]] * (len(cpu_kernels.Kinds._fields) - len(columns))
        self.kinds = cpu_kernels.Kinds._make(map(_kind, columns))._replace(n=self.real.numpy())
        self.table, self.owners = _cut(layers, columns)

    def new_radii_(self, ball: Ball, amp: Amp) -> Tensor:
        """Advances the radii's moments; of layers without a ball 0."""
        if not self.has_ball:
            return self.radii
        found = self._run(self.kernels.sums, ball.exact, self._of_pieces(self.radii))
        h = _grad_scale(amp) * torch.bincount(self.owners, found, len(self.which))
        m, v, steps = map(_Numbers, self.layers[7:10])
        new_m, new_v = m.read(), v.read()
        packed = foreach.move_radii(self.radii, new_m, new_v, steps.read(), h.to(self.real), ball)
        m.write(new_m)
        v.write(new_v)
        return packed

    def move_(self, packed: Tensor, ball: Ball, amp: Amp) -> None:
        """The base's move, c and n, the projection; then the radii, at most the largest n."""
        kernel, begin = self.kernels.move, time.perf_counter()
        compiled = len(kernel.stats.cache_misses)
        radii = self._of_pieces(self.radii), self._of_pieces(packed)
        found = self._run(kernel, self._rule(amp), ball.norm == "l2", *radii)
        if len(kernel.stats.cache_misses) > compiled:
            say_compiled(kernel.stats.cache_path, self.layers.weights[0].dtype, time.perf_counter() - begin)
        if self.has_ball:
            top = torch.zeros_like(packed).scatter_reduce_(0, self.owners, found.to(packed), "amax")
            _Numbers(self.layers.radii).write(torch.where(packed > top, top, packed))
        torch.autograd.graph.increment_version(self.layers.weights)

    def _rule(self, amp: Amp) -> Any:
        """The numbers of the base for this step."""
        base, scale = self.base, _grad_scale(amp)
        if base is None:
            return None
        lr, t = float(base.lr), float(self.layers.steps[0])
        if isinstance(base, AdamW):
            _, b1, b2, eps, decay = base
            root = math.sqrt(1 - b2**t)
            numbers = (scale, b1, 1 - b1, b2, 1 - b2, 1 - lr * decay, lr * root / (1 - b1**t), root * eps)
            return self.kernels.AdamWNumbers._make(self.real.new_tensor(numbers).numpy())
        numbers = (scale, base.momentum, base.weight_decay, lr)
        return self.kernels.SGDNumbers(*self.real.new_tensor(numbers).numpy(), base.nesterov)

    def _of_pieces(self, values: Tensor) -> Any:
        """A value for each piece, from those of the layers."""
        return values[self.owners].numpy()

    def _run(self, kernel: Callable[..., None], *given: Any) -> Tensor:
        """A number for each piece, on as many threads as torch uses; the largest pieces are dealt out first."""
        table, out = self.table.numpy(), torch.zeros(len(self.table), dtype=torch.float64, device="cpu")
        sizes = self.table[:, self.kernels.ROWS] * self.table[:, self.kernels.COLS]
        threads = max(1, min(torch.get_num_threads(), len(table), int(sizes.sum()) // THREAD))
        order = sizes.argsort(descending=True, stable=True)
        shares = [order[k::threads].sort().values.numpy() for k in range(threads)]
        run = partial(kernel, table)
        with ThreadPoolExecutor(threads) as pool:
            others = [pool.submit(run, share, self.kinds, *given, out.numpy()) for share in shares[1:]]
            run(shares[0], self.kinds, *given, out.numpy())
            for other in others:
                other.result()
        return out


def say_compiled(place: str | None, weights: torch.dtype, seconds: float) -> None:
    """One line of the log, since that was a pause; from Numba's cache on disk the kernels come without a word."""
    often = f"once on this machine, kept in {place}" if place else "and will in every process: set NUMBA_CACHE_DIR"
    text, what = "compiled the fused CPU step for %s weights in %.0f s, %s", str(weights).removeprefix("torch.")
    logging.getLogger("hyperopt_ftp").warning(text, what, seconds, often)


@lru_cache(1)
def say_slower(why: str) -> None:
    """One line of the log in a process, where the default is not the fastest step that there is."""
    logging.getLogger("hyperopt_ftp").info("a step on the CPU takes about twice as long as it could, since %s", why)


class _Numbers:
    """0-d tensors of one dtype, as a vector. torch.stack and torch._foreach_copy_ take microseconds for each tensor."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self.like, self.addresses = tensors[0], _addresses(tensors)

    def read(self) -> Tensor:
        from .cpu_kernels import read

        values = self.like.new_empty(len(self.addresses))
        read(self.addresses.numpy(), values.numpy())
        return values

    def write(self, values: Tensor) -> None:
        from .cpu_kernels import write

        write(self.addresses.numpy(), values.numpy())


def _advance(steps: list[Tensor]) -> None:
    steps = [count for count in steps if count.numel()]
    if steps:
        numbers = _Numbers(steps)
        numbers.write(numbers.read() + 1)


def _addresses(tensors: list[Tensor]) -> Tensor:
    return torch.tensor([x.data_ptr() for x in tensors], device="cpu")


def _grad_scale(amp: Amp) -> float:
    scale = 1.0 if amp.grad_scale is None else 1.0 / float(amp.grad_scale)
    return -scale if amp.maximize else scale


def _kind(column: list[Tensor]) -> Any:
    """An empty array of a column's dtype."""
    return torch.empty(0, dtype=BITS.get(column[0].dtype, column[0].dtype), device="cpu").numpy() if column else None


def _cut(layers: Layers, columns: list[list[Tensor]]) -> tuple[Tensor, Tensor]:
    """The kernels' table of pieces, and the layer of each."""
    sizes = torch.tensor([w.numel() for w in layers.weights], device="cpu")
    rows = torch.tensor([n.numel() or 1 for n in layers.norms], device="cpu")
    cols = sizes // rows
    block = torch.where(sizes > LARGE, (BLOCK // cols).clamp(min=1), rows)
    count = (rows + block - 1) // block
    # Not repeat_interleave: after it OpenMP's threads spin for milliseconds where the kernels' threads are to run.
    owners = torch.tensor([i for i, pieces in enumerate(count.tolist()) for _ in range(pieces)], device="cpu")
    rows, cols, block, before = rows[owners], cols[owners], block[owners], (count.cumsum(0) - count)[owners]
    first = block * (torch.arange(len(owners), device="cpu") - before)
    places = [torch.zeros_like(first)] * len(columns)
    for k, column in enumerate(columns):
        if column:
            width = 1 if column is layers.norms else cols
            places[k] = _addresses(column)[owners] + first * width * column[0].element_size()
    return torch.stack([*places, torch.minimum(block, rows - first), cols], dim=1), owners
