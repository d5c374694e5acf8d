"""Cost of the anchored family: a whole step around AdamW(fused=True), as a multiple of that step alone; interleaved,
medians; memory of the state. Rounds with other load are dropped."""

from __future__ import annotations

import argparse
import inspect
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

import hyperopt_ftp as hft
from hyperopt_ftp.torch_optim.drop_in import DropIn

from .measure import interleaved, machine, ratio
from .shapes import SHAPES

GIVEN = {"radius": 0.1}  # options without a default


def family() -> dict[str, Callable[[torch.optim.Optimizer], torch.optim.Optimizer]]:
    """The package's classes around an optimizer; those with a rule that is off by default, with it too."""
    found = {}
    for name, exported in vars(hft).items():
        if isinstance(exported, type) and issubclass(exported, DropIn):
            options = inspect.signature(exported).parameters
            if "base" in options:
                make = partial(exported, **{key: value for key, value in GIVEN.items() if key in options})
                found[name] = make
                for key in options:
                    if options[key].default is False:
                        found[f"{name}({key}=True)"] = partial(make, **{key: True})
    return found


def candidates(shapes: list[torch.Size]) -> dict[str, torch.optim.Optimizer]:
    """Each over weights of its own, a little off the anchor after the first step."""
    torch.manual_seed(0)
    first = [torch.randn(shape) * 0.02 for shape in shapes]
    grads = [torch.randn_like(w) * 1e-3 for w in first]

    def adamw() -> torch.optim.Optimizer:
        params = [torch.nn.Parameter(w.clone()) for w in first]
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        return torch.optim.AdamW(params, lr=1e-4, weight_decay=0.0, fused=True)

    return {"AdamW(fused)": adamw(), **{name: make(adamw()) for name, make in family().items()}}


def measure(model: str, rounds: int) -> dict[str, Any]:
    shapes = SHAPES[model]()
    found = candidates(shapes)
    seconds = interleaved({name: opt.step for name, opt in found.items()}, rounds, quiet=True)
    count = sum(shape.numel() for shape in shapes)
    rows = {}
    for name, opt in found.items():
        state = [t for s in opt.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
        rows[name] = {
            "median_ms": 1e3 * statistics.median(seconds[name]),
            "ratio": ratio(seconds, name, "AdamW(fused)"),
            "state_bytes_per_weight": sum(t.numel() * t.element_size() for t in state) / count,
            "execution": getattr(opt, "execution", None),
        }
    return {"parameters": count, "tensors": len(shapes), "rounds": len(seconds["AdamW(fused)"]), "steps": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["resnet50"], choices=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=9, help="timed steps of each optimizer (default: 9)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/family_cpu.json"))
    args = parser.parse_args()
    record: dict[str, Any] = {"machine": machine(), "models": {}}
    for model in args.models:
        record["models"][model] = measure(model, args.rounds)
        print(f"{model}, {record['models'][model]['parameters']:,} weights")
        for name, row in record["models"][model]["steps"].items():
            bytes_ = f"{row['state_bytes_per_weight']:5.1f} bytes of state a weight"
            print(f"  {name:24} {row['median_ms']:9.2f} ms   {row['ratio']:6.2f} x AdamW(fused)   {bytes_}")
    args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
