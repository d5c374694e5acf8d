"""Tensors and numbers, in as few operations of torch as there can be: an operation costs more than what it computes.

A number is a Python number, or a tensor (0-d, or one that broadcasts) where it is differentiated, transformed or
traced. A Python 0 that is added, and a Python 1 that is multiplied by, cost nothing: what comes back is the argument.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..hparams import as_tensor, is_wrapped


def is_zero(number: Any) -> bool:
    """Whether it is Python's 0; of a tensor more than the value is asked."""
    return not isinstance(number, Tensor) and number == 0


def plus(x: Tensor, number: Any, y: Tensor) -> Tensor:
    """``x + number * y``."""
    if isinstance(number, Tensor):
        return torch.addcmul(x, y, _like(x, number))
    return x if number == 0 else torch.add(x, y, alpha=number)


def minus(x: Tensor, number: Any, y: Tensor, over: Tensor | None = None) -> Tensor:
    """``x - number * y``, or ``x - number * y / over``."""
    if isinstance(number, Tensor):
        number = _like(x, number)
        return torch.addcmul(x, y, number, value=-1) if over is None else torch.addcdiv(x, number * y, over, value=-1)
    if over is not None:
        return torch.addcdiv(x, y, over, value=-number)
    return torch.sub(x, y, alpha=number)


def shrunk(w: Tensor, lr: Any, decay: Any) -> Tensor:
    """``w - lr * decay * w``, decoupled weight decay."""
    return w if is_zero(decay) else minus(w, lr * decay, w)


def times(number: Any, x: Any) -> Any:
    """``number * x``."""
    return x if not isinstance(number, Tensor) and number == 1 else number * x


def toward(x: Tensor, share: Any, y: Tensor) -> Tensor:
    """``x + share * (y - x)``, which is ``y`` itself where the share is 1."""
    if isinstance(share, Tensor):
        share = _like(x, share)
    elif share == 1:
        return y
    return torch.lerp(x, y if y.dtype == x.dtype else y.to(x.dtype), share)


def blend(share: Any, x: Tensor, y: Tensor) -> Tensor:
    """``share * x + (1 - share) * y``, a moving average."""
    return toward(x, 1 - share, y)  # as 1 - share is, in float32, not more than an ulp off


def where(condition: Any, x: Any, y: Any) -> Any:
    """``x`` where the condition holds, else ``y``."""
    if not isinstance(condition, Tensor):
        return x if condition else y
    return torch.where(condition, x if isinstance(y, Tensor) else as_tensor(x), y)  # two numbers make a float32


def chosen(flag: Any, x: Any, y: Tensor) -> Tensor:
    """A new tensor: ``x`` if a flag is set, a bool or a 0-d tensor of any device, else ``y``."""
    if isinstance(flag, Tensor):
        return torch.where(flag.to(y.device), x, y)
    return torch.where(torch.full((), flag, device=y.device), x, y)  # a copy of the flag would wait for the device


def at_least(x: Any, low: Any) -> Any:
    """The larger of the two."""
    if isinstance(low, Tensor):
        return torch.maximum(as_tensor(x), low)
    return x.clamp(min=low) if isinstance(x, Tensor) else max(x, low)


def at_most(x: Any, high: Any) -> Any:
    """The smaller of the two."""
    if isinstance(high, Tensor):
        return torch.minimum(as_tensor(x), high)
    return x.clamp(max=high) if isinstance(x, Tensor) else min(x, high)


def root(x: Tensor) -> Tensor:
    """Square root for a divisor: at least that of the smallest normal number, which is 1e-19 in float32.

    Its derivative is 0 below, so that a dead unit does not turn hypergradients into NaN.
    """
    return x.clamp(min=torch.finfo(x.dtype).tiny).sqrt()


def safe_sqrt(x: Tensor) -> Tensor:
    """Square root whose derivative at 0 is defined as 0, so that a dead unit does not turn hypergradients into NaN."""
    zero = x == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, x).sqrt())


def _like(x: Tensor, number: Tensor) -> Tensor:
    """The number in the dtype of ``x``, where torch does not itself compute in that dtype with a 0-d tensor."""
    if number.dtype == x.dtype or (x.ndim and not number.ndim and not _is_traced(number)):
        return number
    return number.to(x.dtype)


def _is_traced(x: Tensor) -> bool:
    return torch.compiler.is_compiling() or is_wrapped(x)  # of a mapped one torch sees the dimension over which it is


def is_mapped(x: Tensor) -> bool:
    """Whether a transform of torch.func may give it any value, also one outside its domain."""
    return not torch.compiler.is_compiling() and is_wrapped(x)
