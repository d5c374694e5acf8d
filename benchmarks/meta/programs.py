"""The programs, by whom they are written, and a contender's meta-steps."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from . import darts, distillation, implicit_maml, learned_optimizer, maml, meta_sgd, meta_weight_net

#: Each has `start`, whose last value is a list of batches, contenders, and the `score` of what these learn.
PROGRAMS: dict[str, Any] = {
    "MAML": maml,
    "Meta-SGD": meta_sgd,
    "implicit MAML": implicit_maml,
    "DARTS": darts,
    "distillation": distillation,
    "Meta-Weight-Net": meta_weight_net,
    "learned optimizer": learned_optimizer,
}
#: A contender is a function of a program: it makes a meta-step each time that it is asked for what it has learned.
CONTENDERS = {
    "ours": "ours",
    "ours, compiled": "compiled",
    "TorchOpt": "with_torchopt",
    "higher": "with_higher",
    "JAX": "with_jax",
}
MODULES = {"TorchOpt": "torchopt", "higher": "higher", "JAX": "optax"}


def contenders_of(program: str) -> list[str]:
    """Those that are written and installed."""
    written = (name for name, function in CONTENDERS.items() if hasattr(PROGRAMS[program], function))
    return [name for name in written if name not in MODULES or find_spec(MODULES[name])]


def begun(program: str, contender: str) -> Iterator[Any]:
    *given, data = PROGRAMS[program].start()
    if contender == "JAX":
        import jax

        given, data = tree_map(lambda x: jax.device_put(x.detach().numpy()), (given, data))
    return getattr(PROGRAMS[program], CONTENDERS[contender])(*given, cycle(data))


def scored(program: str, steps: int, run: Iterator[Any]) -> dict[str, float]:
    learned = after(steps, run)
    return {"score": PROGRAMS[program].score(learned), "rounding": rounding(learned)}


def after(steps: int, run: Iterator[Any]) -> Any:
    """What is learned by these meta-steps, once it is there: JAX does not wait for it."""
    *_, learned = islice(run, steps)
    return tree_map(lambda x: x.detach() if isinstance(x, Tensor) else torch.from_numpy(np.array(x)), learned)


def rounding(learned: Any) -> float:
    """Relative difference of scores that it explains."""
    return 1e-9 if tree_leaves(learned)[0].dtype == torch.float64 else 1e-4


def off(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Contenders with another score than ours."""
    right = rows["ours"]["score"]
    return [name for name, row in rows.items() if not abs(row["score"] - right) <= row["rounding"] * abs(right)]
