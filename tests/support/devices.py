"""Trees on one device and on another."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hyperopt_ftp import tree


def moved(values: Any, device: str) -> Any:
    return tree.map_tree(lambda x: x.to(device) if isinstance(x, Tensor) else x, values)


def same(found: Any, want: Any) -> None:
    """What was computed on a device is what the CPU computes, but for rounding."""
    for x, y in zip(tree.leaves(found), tree.leaves(want), strict=True):
        torch.testing.assert_close(x.detach().cpu(), y.detach(), rtol=1e-12, atol=1e-13)
