"""FTP around optimizers with states of 8 bits: bytes of state a weight, and a whole step as a multiple of
AdamW(fused=True)'s; interleaved, medians. Rounds with other load are dropped."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import hyperopt_ftp as hft

from .measure import interleaved, machine, ratio
from .shapes import SHAPES


def candidates(shapes: list[torch.Size], folder: str) -> dict[str, torch.optim.Optimizer]:
    """Each over weights of its own; one has its anchor in a file in ``folder``."""
    with contextlib.redirect_stdout(io.StringIO()):
        import bitsandbytes
        import torchao.optim
    torch.manual_seed(0)
    first = [torch.randn(shape) * 0.02 for shape in shapes]
    grads = [torch.randn_like(w) * 1e-3 for w in first]

    file = f"{folder}/anchor.safetensors"
    save_file({str(i): w for i, w in enumerate(first)}, file)

    def params() -> list[tuple[str, torch.nn.Parameter]]:
        found = [(str(i), torch.nn.Parameter(w.clone())) for i, w in enumerate(first)]
        for (_, p), g in zip(found, grads, strict=True):
            p.grad = g
        return found

    def bnb() -> torch.optim.Optimizer:
        return bitsandbytes.optim.AdamW8bit(params(), lr=1e-4)

    def ao() -> torch.optim.Optimizer:
        return torchao.optim.AdamW8bit(params(), lr=1e-4)

    return {
        "AdamW(fused)": torch.optim.AdamW(params(), lr=1e-4, fused=True),
        "FTPAdamW": hft.FTPAdamW(params(), lr=1e-4),
        "FTPAdamW(lean)": hft.FTPAdamW(params(), lr=1e-4, lean=True),
        "bitsandbytes AdamW8bit": bnb(),
        "FTP(bitsandbytes AdamW8bit)": hft.FTP(bnb()),
        "the same, anchor in a file": hft.FTP(bnb(), anchor=file),
        "torchao AdamW8bit": ao(),
        "FTP(torchao AdamW8bit)": hft.FTP(ao()),
    }


def tensors(value: Any) -> Iterator[Tensor]:
    """Of a state, those inside a tensor that is kept in 8 bits for the tensor."""
    if isinstance(value, Tensor):
        inside = getattr(value, "__tensor_flatten__", lambda: ([], None))()[0]
        yield from (getattr(value, name) for name in inside) if inside else (value,)
    elif isinstance(value, dict):
        for one in value.values():
            yield from tensors(one)


def measure(model: str, rounds: int) -> dict[str, Any]:
    shapes = SHAPES[model]()
    with tempfile.TemporaryDirectory() as folder:
        found = candidates(shapes, folder)
        seconds = interleaved({name: opt.step for name, opt in found.items()}, rounds, quiet=True)
    count, rows = sum(shape.numel() for shape in shapes), {}
    for name, opt in found.items():
        unique = {t.data_ptr(): t.numel() * t.element_size() for s in opt.state.values() for t in tensors(s)}
        rows[name] = {
            "median_ms": 1e3 * statistics.median(seconds[name]),
            "ratio": ratio(seconds, name, "AdamW(fused)"),
            "state_bytes_per_weight": sum(unique.values()) / count,
            "execution": getattr(opt, "execution", None),
        }
    return {"parameters": count, "tensors": len(shapes), "rounds": len(seconds["AdamW(fused)"]), "steps": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet50", choices=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=7, help="timed steps of each optimizer (default: 7)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/bases_cpu.json"))
    args = parser.parse_args()
    record = {"machine": machine(), "model": args.model, **measure(args.model, args.rounds)}
    print(f"{args.model}, {record['parameters']:,} weights")
    for name, row in record["steps"].items():
        bytes_ = f"{row['state_bytes_per_weight']:5.2f} bytes of state a weight"
        print(f"  {name:28} {row['median_ms']:9.2f} ms   {row['ratio']:6.2f} x AdamW(fused)   {bytes_}")
    args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
