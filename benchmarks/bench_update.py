"""A pure update of many small tensors against torch's: 200 tensors of 64 numbers, Adam, one thread.

``hft.adam().update`` under ``torch.no_grad`` and ``torch.optim.Adam(foreach=True).step``, in turns in one process.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import hyperopt_ftp as hft

from .measure import Others, interleaved, machine, ratio

OURS, TORCH = "hft.adam().update", "torch.optim.Adam(foreach=True).step"


def candidates(tensors: int, numbers: int) -> dict[str, Callable[[], Any]]:
    """Both from the same weights and gradients; each call is one step further."""
    torch.manual_seed(0)
    weights = [torch.randn(numbers) for _ in range(tensors)]
    grads = {str(k): torch.randn(numbers) for k in range(tensors)}
    opt = hft.adam(lr=1e-3)
    held: dict[str, Any] = {"params": {str(k): w.clone() for k, w in enumerate(weights)}}
    held["state"] = opt.init(held["params"])

    @torch.no_grad()
    def ours() -> dict[str, torch.Tensor]:
        held["params"], held["state"] = opt.update(grads, held["state"], held["params"])
        return held["params"]

    params = [torch.nn.Parameter(w.clone()) for w in weights]
    for p, g in zip(params, grads.values(), strict=True):
        p.grad = g.clone()
    theirs = torch.optim.Adam(params, lr=1e-3, foreach=True)

    def step() -> dict[str, torch.Tensor]:
        theirs.step()
        return {str(k): p.detach() for k, p in enumerate(params)}

    return {OURS: ours, TORCH: step}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tensors", type=int, default=200, help="default: 200")
    parser.add_argument("--numbers", type=int, default=64, help="in each tensor (default: 64)")
    parser.add_argument("--rounds", type=int, default=101, help="timed calls of each (default: 101)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/update.json"), help="the JSON file")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found, others = candidates(args.tensors, args.numbers), Others()
    seconds = interleaved(found, args.rounds, warmup=5)
    share = others.share()
    ours, theirs = found[OURS](), found[TORCH]()
    for name, w in ours.items():
        eps = torch.finfo(w.dtype).eps  # a step rounds its weight once, and is lr long but for a few roundings
        torch.testing.assert_close(w, theirs[name], rtol=args.rounds * eps, atol=args.rounds * eps)
    record = {
        "machine": machine(),
        "tensors": args.tensors,
        "numbers": args.numbers,
        "rounds": args.rounds,
        "share_of_other_processes": share,
        "median_ms": {name: 1e3 * statistics.median(times) for name, times in seconds.items()},
        "ours_over_torch": ratio(seconds, OURS, TORCH),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=1) + "\n")
    for name, value in record["median_ms"].items():
        print(f"  {name:38} {value:7.3f} ms")
    print(f"  ours / torch: {record['ours_over_torch']:.2f}   (other processes: {100 * share:.0f} % of the machine)")


if __name__ == "__main__":
    main()
