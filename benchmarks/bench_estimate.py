"""What ``hft.estimate`` predicts against what is measured: memory and time of five networks and the strategies.

Memory by the events of torch's allocator on the CPU, time in units of one plain gradient, taken in turns with the
hypergradients. The table goes into docs/concepts/cost.md. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import statistics
import warnings
from pathlib import Path
from typing import Any

import torch

import hyperopt_ftp as hft

from .measure import Others, allocated, interleaved, machine
from .nets import NETS, Problem

STRATEGIES = {
    "Unroll(checkpoint=False)": hft.Unroll(checkpoint=False),
    "Unroll(checkpoint=1)": hft.Unroll(checkpoint=1),
    'Unroll(checkpoint="sqrt")': hft.Unroll(checkpoint="sqrt"),
    "Unroll(truncate=8)": hft.Unroll(truncate=8),
    "Forward()": hft.Forward(),
    "Implicit(iterations=10)": hft.Implicit(iterations=10, tolerance=0.0),
    "ZeroOrder(4)": hft.ZeroOrder(4, 1e-6),
}
BEGIN, END = "<!-- bench_estimate -->\n", "<!-- end of bench_estimate -->"


def measured(problem: Problem, strategy: Any, rounds: int) -> dict[str, dict[str, float]]:
    """Predicted and measured, each of memory in bytes and time in gradients."""
    state = problem.optimizer.init(problem.params)
    params = {name: x.clone().requires_grad_() for name, x in problem.params.items()}
    own = () if problem.hparams is None else (problem.hparams["loss"],)

    def gradient() -> None:
        for _ in range(10):
            torch.autograd.grad(problem.loss(params, problem.batches[0], *own), list(params.values()))

    def hypergradient() -> None:
        problem.hypergradient(strategy, state)

    found = problem.estimate(strategy, state)
    peak, _ = allocated(hypergradient)
    seconds = interleaved({"gradient": gradient, "hypergradient": hypergradient}, rounds, warmup=1)
    time = statistics.median(seconds["hypergradient"]) / (statistics.median(seconds["gradient"]) / 10)
    return {
        "memory": {"predicted": found.memory, "measured": peak},
        "time": {"predicted": found.time, "measured": time},
    }


def table(record: dict[str, Any]) -> str:
    """Markdown: MiB and gradients, predicted and measured."""
    lines = [
        "| network, strategy | MiB predicted | measured | | gradients predicted | measured | |",
        "|---|" + 6 * "---|",
    ]
    for row in record["rows"]:
        cells = [f"{row['network']}, `{row['strategy']}`"]
        for part, unit, digits in (("memory", 2**20, 2), ("time", 1, 0)):
            predicted, found = (row[part][x] / unit for x in ("predicted", "measured"))
            cells += [f"{predicted:.{digits}f}", f"{found:.{digits}f}", f"{100 * (predicted / found - 1):+.0f} %"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def published(page: str, record: dict[str, Any]) -> str:
    """The page with the table of that record."""
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    return f"{before}{BEGIN}{table(record)}{END}{after}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--steps", type=int, default=32, help="of training (default: 32)")
    parser.add_argument("--size", type=int, default=2, help="factor of the widths (default: 2)")
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each (default: 5)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/estimate_cpu.json"), help="the JSON file")
    parser.add_argument("--page", type=Path, default=Path("docs/concepts/cost.md"), help="that gets the table")
    args = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", message="Implicit")  # nothing has converged
    torch.set_num_threads(1)
    others, rows = Others(), []
    for name in args.nets:
        for how, strategy in STRATEGIES.items():
            torch.manual_seed(0)
            problem = NETS[name](args.steps, args.size)
            if name == "weighted" and how == "Forward()":
                problem = problem._replace(over="lr")  # not 20,000 tangents
            rows.append({"network": name, "strategy": how, **measured(problem, strategy, args.rounds)})
            print(table({"rows": rows[-1:]}).splitlines()[-1], flush=True)
    share = others.share()
    print(f"other processes: {100 * share:.0f} % of the machine")
    record = {
        "machine": machine(),
        "steps": args.steps,
        "size": args.size,
        "share_of_other_processes": share,
        "rows": rows,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=1) + "\n")
    args.page.write_text(published(args.page.read_text(), record))


if __name__ == "__main__":
    main()
