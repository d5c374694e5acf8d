"""A whole step of each class of the family around AdamW(fused=True), as a multiple of that step alone, and the bytes of
its state; with ``--eight-bits`` of FTP around optimizers with states of 8 bits. Interleaved, medians; rounds with other
load are dropped."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import hyperopt_ftp as hft
from hyperopt_ftp.torch_optim.drop_in import DropIn

from .measure import interleaved, machine, ratio
from .shapes import SHAPES

GIVEN = {"radius": 0.1}  # options without a default
Make = Callable[[torch.optim.Optimizer], torch.optim.Optimizer]
Params = Callable[[], list[tuple[str, torch.nn.Parameter]]]


def adamw(params: Params) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params(), lr=1e-4, weight_decay=0.0, fused=True)


def family() -> dict[str, Make]:
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


def of_family(params: Params, folder: str) -> dict[str, torch.optim.Optimizer]:
    return {"AdamW(fused)": adamw(params), **{name: make(adamw(params)) for name, make in family().items()}}


def of_eight_bits(params: Params, folder: str) -> dict[str, torch.optim.Optimizer]:
    """One has its anchor in a file in ``folder``."""
    with contextlib.redirect_stdout(io.StringIO()):
        import bitsandbytes
        import torchao.optim
    file = f"{folder}/anchor.safetensors"
    save_file({name: p.detach() for name, p in params()}, file)

    def bnb() -> torch.optim.Optimizer:
        return bitsandbytes.optim.AdamW8bit(params(), lr=1e-4)

    def ao() -> torch.optim.Optimizer:
        return torchao.optim.AdamW8bit(params(), lr=1e-4)

    return {
        "AdamW(fused)": adamw(params),
        "FTPAdamW": hft.FTPAdamW(params(), lr=1e-4),
        "FTPAdamW(lean)": hft.FTPAdamW(params(), lr=1e-4, lean=True),
        "bitsandbytes AdamW8bit": bnb(),
        "FTP(bitsandbytes AdamW8bit)": hft.FTP(bnb()),
        "the same, anchor in a file": hft.FTP(bnb(), anchor=file),
        "torchao AdamW8bit": ao(),
        "FTP(torchao AdamW8bit)": hft.FTP(ao()),
    }


def measure(candidates: Callable[[Params, str], dict[str, torch.optim.Optimizer]], model: str, rounds: int) -> Any:
    """Each candidate over weights of its own, a little off the anchor after the first step."""
    torch.manual_seed(0)
    first = [torch.randn(shape) * 0.02 for shape in SHAPES[model]()]
    grads = [torch.randn_like(w) * 1e-3 for w in first]

    def params() -> list[tuple[str, torch.nn.Parameter]]:
        found = [(str(i), torch.nn.Parameter(w.clone())) for i, w in enumerate(first)]
        for (_, p), g in zip(found, grads, strict=True):
            p.grad = g
        return found

    with tempfile.TemporaryDirectory() as folder:
        found = candidates(params, folder)
        seconds = interleaved({name: opt.step for name, opt in found.items()}, rounds, quiet=True)
    count, rows = sum(w.numel() for w in first), {}
    for name, opt in found.items():
        unique = {t.data_ptr(): t.numel() * t.element_size() for state in opt.state.values() for t in tensors(state)}
        rows[name] = {
            "median_ms": 1e3 * statistics.median(seconds[name]),
            "ratio": ratio(seconds, name, "AdamW(fused)"),
            "state_bytes_per_weight": sum(unique.values()) / count,
            "execution": getattr(opt, "execution", None),
        }
    return {"parameters": count, "tensors": len(first), "rounds": len(seconds["AdamW(fused)"]), "steps": rows}


def tensors(value: Any) -> Iterator[Tensor]:
    """Of a state, those inside a tensor that is kept in 8 bits for the tensor."""
    if isinstance(value, Tensor):
        inside = getattr(value, "__tensor_flatten__", lambda: ([], None))()[0]
        yield from (getattr(value, name) for name in inside) if inside else (value,)
    elif isinstance(value, dict):
        for one in value.values():
            yield from tensors(one)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet50", choices=list(SHAPES))
    parser.add_argument("--eight-bits", action="store_true", help="optimizers with states of 8 bits (extra bases)")
    parser.add_argument("--rounds", type=int, default=9, help="timed steps of each optimizer (default: 9)")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/family_cpu.json or bases_cpu.json")
    args = parser.parse_args()
    found = measure(of_eight_bits if args.eight_bits else of_family, args.model, args.rounds)
    print(f"{args.model}, {found['parameters']:,} weights")
    for name, row in found["steps"].items():
        bytes_ = f"{row['state_bytes_per_weight']:5.2f} bytes of state a weight"
        print(f"  {name:28} {row['median_ms']:9.2f} ms   {row['ratio']:6.2f} x AdamW(fused)   {bytes_}")
    out = args.out or Path(f"benchmarks/results/{'bases' if args.eight_bits else 'family'}_cpu.json")
    out.write_text(json.dumps({"machine": machine(), "model": args.model, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
