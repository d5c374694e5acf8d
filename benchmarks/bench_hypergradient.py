"""Time and peak memory of a hypergradient, ours against TorchOpt and higher; and vmapped training against the loop.

Times are interleaved in one process; peak memory is that of a process of its own for each candidate, above what it
held when the data lay in memory. Prints ratios of medians and writes all figures as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch

import hyperopt_ftp as hft

from .hypergradient_peers import CANDIDATES, Problem
from .measure import interleaved, machine, ratio

PEERS = ("torchopt", "higher")
#: glibc gives what is freed back at once: the peak is that of live memory, not of a fragmented heap.
RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def status(field: str) -> float:
    """A memory figure of this process in MiB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def peak_of(name: str, steps: int) -> dict[str, float]:
    """Run one candidate in this process: its peak memory above the baseline in MiB, and its result."""
    CANDIDATES[name](Problem(1))  # imports and library buffers
    problem = Problem(steps)
    baseline = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    result = CANDIDATES[name](problem)
    return {"peak_mib": status("VmHWM") - baseline, "hypergradient": result}


def memory(names: list[str], steps: int) -> dict[str, dict[str, float]]:
    figures = {}
    for name in names:
        call = [sys.executable, "-W", "ignore", "-m", "benchmarks.bench_hypergradient", "--peak-of", name, str(steps)]
        run = subprocess.run(call, check=True, capture_output=True, text=True, env={**os.environ, **RETURN_MEMORY})
        figures[name] = json.loads(run.stdout)
    return figures


def vmapped_runs(count: int, rounds: int) -> dict[str, Any]:
    """`count` trainings of a small MLP over as many learning rates: one vmap against a loop."""
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
    return {"runs": count, "loop_over_vmap": ratio(seconds, "loop", "vmap")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[16, 64], help="inner steps K (default: 16 64)")
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each candidate (default: 5)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/hypergradient.json"), help="the JSON file")
    parser.add_argument("--peak-of", nargs=2, metavar=("NAME", "K"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # the peers' own
    if args.peak_of:
        print(json.dumps(peak_of(args.peak_of[0], int(args.peak_of[1]))))
        return

    record: dict[str, Any] = {"machine": machine(), "rounds": args.rounds, "K": {}}
    for steps in args.steps:
        names = [n for n in CANDIDATES if n != "higher" or steps <= 16]
        problem = Problem(steps)
        seconds = interleaved({n: partial(CANDIDATES[n], problem) for n in names}, args.rounds, warmup=1)
        peaks = memory(names, steps)
        fastest = min((n for n in names if n in PEERS), key=lambda n: statistics.median(seconds[n]))
        record["K"][steps] = {
            n: {
                "median_seconds": statistics.median(seconds[n]),
                "time_over_faster_peer": ratio(seconds, n, fastest),
                "memory_over_torchopt": peaks[n]["peak_mib"] / peaks["torchopt"]["peak_mib"],
                **peaks[n],
            }
            for n in names
        }
        print(f"K = {steps} (faster peer: {fastest})")
        for n, row in record["K"][steps].items():
            print(
                f"  {n:26} {row['median_seconds']:7.2f} s  {row['time_over_faster_peer']:5.2f} x   "
                f"{row['peak_mib']:7.0f} MiB  {row['memory_over_torchopt']:5.2f} x torchopt   "
                f"d/d lr {row['hypergradient']:.6g}"
            )
    forward = {k: memory(["Forward()"], k)["Forward()"]["peak_mib"] for k in (4, 64)}
    record["forward_peak_mib"] = forward
    print(
        f"Forward() peak: K = 4 {forward[4]:.0f} MiB, K = 64 {forward[64]:.0f} MiB ({forward[64] / forward[4]:.2f} x)"
    )
    record["vmap"] = vmapped_runs(16, args.rounds)
    print(f"16 small runs in one vmap: {record['vmap']['loop_over_vmap']:.1f} times as fast as the loop")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
