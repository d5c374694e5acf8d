"""The memory that ``hft.estimate`` predicts against what is measured, of five networks and the strategies.

By the events of torch's allocator on the CPU. The table goes into docs/concepts/cost.md.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

import hyperopt_ftp as hft

from .measure import allocated, machine, options, published, write
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


def measured(problem: Problem, strategy: Any) -> dict[str, int]:
    """Bytes at the peak, predicted and measured."""
    state = problem.optimizer.init(problem.params)
    found = problem.estimate(strategy, state)
    return {"predicted": found.memory, "measured": allocated(lambda: problem.hypergradient(strategy, state))[0]}


def table(record: dict[str, Any]) -> str:
    """Markdown: MiB, predicted and measured."""
    lines = ["| network, strategy | MiB predicted | measured | |", "|---|---|---|---|"]
    for row in record["rows"]:
        predicted, found = (row[x] / 2**20 for x in ("predicted", "measured"))
        cells = (f"{row['network']}, `{row['strategy']}`", f"{predicted:.2f}", f"{found:.2f}")
        lines.append(f"| {' | '.join(cells)} | {100 * (predicted / found - 1):+.0f} % |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = options(__doc__, "estimate_cpu.json")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--steps", type=int, default=32, help="of training (default: 32)")
    parser.add_argument("--size", type=int, default=2, help="factor of the widths (default: 2)")
    parser.add_argument("--page", type=Path, default=Path("docs/concepts/cost.md"), help="that gets the table")
    args = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", message="Implicit")  # nothing has converged
    torch.set_num_threads(1)
    rows = []
    for name in args.nets:
        for how, strategy in STRATEGIES.items():
            torch.manual_seed(0)
            problem = NETS[name](args.steps, args.size)
            if name == "weighted" and how == "Forward()":
                problem = problem._replace(over="lr")  # not 20,000 tangents
            rows.append({"network": name, "strategy": how, **measured(problem, strategy)})
            print(table({"rows": rows[-1:]}).splitlines()[-1], flush=True)
    record = {"machine": machine(), "steps": args.steps, "size": args.size, "rows": rows}
    write(args.out, record)
    args.page.write_text(published(args.page.read_text(), "bench_estimate", table(record)))


if __name__ == "__main__":
    main()
