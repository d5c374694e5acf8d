"""The small problem of the contract, and the two grounds of truth: a plain loop and central differences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hyperopt_ftp import tree
from hyperopt_ftp.testing import central_differences as central_differences
from hyperopt_ftp.testing import largest_difference as largest_difference
from hyperopt_ftp.testing import small_batches as batches
from hyperopt_ftp.testing import small_loss as loss
from hyperopt_ftp.testing import small_params as start
from hyperopt_ftp.testing import small_training as train

__all__ = ["batches", "central_differences", "entries", "largest_difference", "loss", "start", "train"]


def entries(values: Any) -> Tensor:
    """All entries of all leaves, one after the other."""
    return torch.cat([x.reshape(-1) for x in tree.leaves(values)])
