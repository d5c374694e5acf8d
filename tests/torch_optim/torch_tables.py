"""Prints torch's own table of its optimizers' options and errors, pickled; in a process of its own.

To import it changes a process: it freezes flags of torch.backends, loads a profile of hypothesis and reads sys.argv.
"""

from __future__ import annotations

import importlib.util
import pickle
import sys
import types
import unittest
from typing import Any


def tables() -> dict[str, dict[str, list[Any]]]:
    """By optimizer: options of runs on a CPU and on a GPU, and what is refused, with the error and its text."""
    if importlib.util.find_spec("expecttest") is None:  # of torch's developers; the table needs its class alone
        sys.modules["expecttest"] = types.ModuleType("expecttest")
        sys.modules["expecttest"].TestCase = unittest.TestCase  # pyright: ignore[reportAttributeAccessIssue]
    import torch
    from torch.testing._internal.common_optimizers import optim_db

    found = {}
    for info in optim_db:
        if info.only_supports_sparse_grads or info.step_requires_closure:
            continue
        wrong = info.optim_error_inputs_func("cpu", torch.float32)
        found[info.optim_cls.__name__] = {
            "inputs": [(x.desc, x.kwargs) for device in ("cpu", "cuda") for x in info.optim_inputs_func(device)],
            "errors": [
                (x.desc, x.params, x.kwargs, error.error_type.__name__)
                for error in wrong
                for x in [error.optimizer_error_input]
                if error.error_on.name == "CONSTRUCTION_ERROR"
            ],
        }
    return found


if __name__ == "__main__":
    sys.stdout.buffer.write(pickle.dumps(tables()))
