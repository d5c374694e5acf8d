"""Sixteen trainings of a small MLP over as many learning rates: one vmap against a loop. One thread, medians."""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch

import hyperopt_ftp as hft

from .measure import Others, interleaved, machine, ratio


def measure(count: int, rounds: int) -> float:
    """How many times as long the loop takes."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    params = {n: p.detach() for n, p in net.named_parameters()}
    data = [(torch.randn(32, 16), torch.randn(32, 1)) for _ in range(20)]
    opt, lrs = hft.adam(), torch.logspace(-4, -1, count, dtype=torch.float64)

    def loss(p: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return ((torch.func.functional_call(net, p, (x,)) - y) ** 2).mean()

    def train(lr: torch.Tensor) -> Any:
        p, h = params, opt.hparams | {"lr": lr}
        state = opt.init(p, h)
        for x, y in data:
            p, state = opt.update(torch.func.grad(loss)(p, x, y), state, p, h)
        return p

    together = torch.func.vmap(train)
    for one, lr in zip(together(lrs)["0.weight"], lrs, strict=True):
        torch.testing.assert_close(one, train(lr)["0.weight"])
    seconds = interleaved({"vmap": partial(together, lrs), "loop": lambda: [train(lr) for lr in lrs]}, rounds)
    return ratio(seconds, "loop", "vmap")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="timed calls of each (default: 7)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/vmap.json"), help="the JSON file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    others = Others()
    found: dict[str, Any] = {"machine": machine(), "runs": 16, "rounds": args.rounds}
    found["loop_over_vmap"] = measure(16, args.rounds)
    found["share_of_other_processes"] = others.share()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    print(f"16 small runs in one vmap: {found['loop_over_vmap']:.1f} times as fast as the loop")


if __name__ == "__main__":
    main()
