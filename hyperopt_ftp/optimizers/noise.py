"""Gaussian noise on gradients, by a generator that is a function of its counter."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import tree
from ..calls import explained
from ..dtensors import in_layout_of, whole
from ..hparams import Domain, check_zero_d, to_tensors
from ..types import Number, Optimizer
from .arithmetic import safe_sqrt
from .leafwise import check_grads, check_state, no_steps
from .wrap import wrapped

_WORD = 0xFFFFFFFF
_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)


class NoisyState(NamedTuple):
    """State of :func:`noisy`."""

    step: Tensor  # shape (), int64: updates done
    base: Any


@explained("noisy(sgd(lr=0.1), scale=0.01, decay=0.55)")
def noisy(base: Optimizer, scale: Number, decay: Number = 0.55, *, seed: int = 0) -> Optimizer[NoisyState]:
    """Gaussian noise on the gradients, with a falling variance (arXiv 1511.06807, equation 1).

    With t counting the updates from 0, and an independent ``z`` for each entry of each gradient::

        g <- g + sqrt(scale / (1 + t)^decay) * z,   z ~ N(0, 1)

    Args:
        base: any optimizer.
        scale: number or 0-d tensor >= 0, the variance at the first update; the hparam ``"scale"``.
        decay: number or 0-d tensor >= 0, how fast the variance falls; the hparam ``"decay"``.
        seed: a whole number in [0, 2^32) (not an hparam). Nested ones, and the parts of a :func:`partition`, need
            different seeds.

    Raises:
        ValueError: a number outside its domain.
        TypeError: a seed that is not a whole number.

    ``z`` depends only on ``seed``, t, the place of the leaf in the tree, and the place of the entry in the leaf
    (:func:`~hyperopt_ftp.optimizers.noise.normal`). No random state is read or changed. A run has the same noise when
    it is resumed, repeated for its derivative, or compiled, and all trainings of a ``vmap`` share it. Uncompiled, it
    takes about ten times as long as ``torch.randn``.

    >>> import torch, hyperopt_ftp as hft
    >>> opt = hft.noisy(hft.sgd(lr=1.0), scale=0.01)
    >>> w = torch.zeros(10000)
    >>> new, _ = opt.update(torch.ones(10000), opt.init(w), w)
    >>> new.mean(), new.std()
    (tensor(-1.0008), tensor(0.1011))
    """
    domains = {name: Domain(0.0, math.inf, open_high=True) for name in ("scale", "decay")}
    own = to_tensors(domains, scale=scale, decay=decay)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be a whole number, got {type(seed).__name__}")
    if not 0 <= seed <= _WORD:
        raise ValueError(f"seed must lie in [0, 2^32), got {seed}")

    def init(params: Any, bases: Any, owns: dict[str, Any]) -> NoisyState:
        return NoisyState(no_steps(), base.init(params, bases))

    def update(grads: Any, state: NoisyState, params: Any, bases: Any, owns: dict[str, Any]) -> tuple[Any, NoisyState]:
        check_state(NoisyState, state)
        for name, value in owns.items():
            check_zero_d(name, value)
        deviation = safe_sqrt(owns["scale"]) * (1 + state.step) ** (-owns["decay"] / 2)

        def noised(g: Tensor, leaf: int) -> Tensor:
            return (g + deviation * in_layout_of(normal(tree.working(g), seed, leaf, state.step), g)).to(g.dtype)

        rows = [None if g is None else noised(g, leaf) for leaf, g in enumerate(check_grads(grads, params))]
        params, inner = base.update(tree.flatten(params)[1](rows), state.base, params, bases)
        return params, NoisyState(state.step + 1, inner)

    return wrapped(base, own, init, update, domains=domains)


def normal(x: Tensor, seed: int, leaf: int, step: Tensor) -> Tensor:
    """Independent standard normal numbers in the shape, dtype and device of ``x``.

    Two for each block i of :func:`threefry`, by Box and Muller: with ``u``, ``v`` its words over 2^32,
    ``sqrt(-2 log u) cos(2 pi v)`` and ``sqrt(-2 log u) sin(2 pi v)``. The largest is 6.8.
    """
    half = (x.numel() + 1) // 2
    entry = torch.arange(half, device=x.device)
    u, v = (((word.to(x.dtype) + 0.5) / 2**32) for word in threefry((seed, leaf), (whole(step), entry)))
    length, angle = (-2 * u.log()).sqrt(), 2 * math.pi * v
    return torch.cat([length * angle.cos(), length * angle.sin()])[: x.numel()].reshape(x.shape)


def threefry(key: tuple[Any, Any], counter: tuple[Any, Any]) -> tuple[Any, Any]:
    """Threefry-2x32 with 13 rounds (Salmon et al., SC 2011): two words from a key and a counter of two words each.

    Words are whole numbers in [0, 2^32), or int64 tensors of them. For one key, different counters give different
    results. 13 is the least number of rounds that passes the authors' tests (BigCrush).

    >>> [hex(x) for x in threefry((0, 0), (0, 0))]
    ['0x9d1c5ec6', '0x8bd50731']
    """
    keys = (*key, key[0] ^ key[1] ^ 0x1BD11BDA)
    x, y = (counter[0] + keys[0]) & _WORD, (counter[1] + keys[1]) & _WORD
    for i in range(13):
        turn = _ROTATIONS[i % 8]
        x = (x + y) & _WORD
        y = ((y << turn | y >> 32 - turn) & _WORD) ^ x
        if i % 4 == 3:
            n = i // 4 + 1
            x, y = (x + keys[n % 3]) & _WORD, (y + keys[(n + 1) % 3] + n) & _WORD
    return x, y
