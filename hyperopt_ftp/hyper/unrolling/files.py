"""Tensors in a file, for points that are kept on disk."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Filed:
    """Some values, whose tensors are in a file of the temporary directory as long as this object lives."""

    def __init__(self, values: Sequence[Any]) -> None:
        # Of a view its own entries alone: torch writes the whole memory behind it.
        whole = [x for x in values if isinstance(x, Tensor)]
        whole = [x if x.untyped_storage().nbytes() == x.nbytes else x.clone() for x in whole]
        self._others = [None if isinstance(x, Tensor) else x for x in values]
        self._places = [i for i, x in enumerate(values) if isinstance(x, Tensor)]
        try:
            handle, self._path = tempfile.mkstemp(prefix="hyperopt_ftp-", suffix=".pt")
            os.close(handle)
            weakref.finalize(self, os.unlink, self._path)
            torch.save(whole, self._path)
        except (OSError, RuntimeError) as error:  # torch's writer raises the second one where a disk is full
            raise RuntimeError(
                f'offload="disk": a point cannot be written to {tempfile.gettempdir()} ({error}); TMPDIR in the '
                'environment names another directory. Or keep fewer points (checkpoint="sqrt"), or take offload=True'
            ) from error

    def load(self) -> list[Any]:
        values = self._others.copy()
        for i, x in zip(self._places, torch.load(self._path, weights_only=True), strict=True):
            values[i] = x
        return values
