"""Time and peak memory of hypergradients, ours against TorchOpt, higher, JAX with optax and a loop by hand.

Every contender of a problem has a process of its own with the same number of threads, from the same arrays in float32;
they are timed in turns, and all of them compared with the hypergradient in float64: one that is further off than
rounding explains is an error. The first call, which compiles where something is compiled, has a column of its own. Peak
memory is that of another process, above what it held before. Prints Markdown; writes JSON (figures of problems that do
not run stay in it) and a figure.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from typing import Any

from .hypergradient import across
from .hypergradient.contenders import CONTENDERS, contenders_of
from .hypergradient.problems import PROBLEMS
from .hypergradient.processes import measure
from .hypergradient.report import draw, table
from .measure import machine, options, write


def main(arguments: list[str] | None = None) -> None:
    parser = options(__doc__, "hypergradient.json", rounds=7)
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=list(PROBLEMS), help="default: all")
    parser.add_argument("--contenders", nargs="+", choices=list(CONTENDERS), metavar="NAME", help="these only")
    parser.add_argument("--steps", type=int, help="training steps (default: those of the problem)")
    parser.add_argument("--show", action="store_true", help="measure nothing: tables and figure of what is in the file")
    args = parser.parse_args(arguments)
    problems: dict[str, Any] = json.loads(args.out.read_text())["problems"] if args.out.exists() else {}
    off = []
    for name in [] if args.show else args.problems:
        names = [n for n in contenders_of(PROBLEMS[name](args.steps)) if n in (args.contenders or CONTENDERS)]
        record = measure(name, args.steps, names, args.rounds)
        peers = {peer: version(peer) for peer in ("torchopt", "higher", "jax", "optax")}
        problems[name] = {"machine": {**machine(), "threads": record["threads"], **peers}, **record}
        off += [f"{n} on {name}" for n in record["off"]]
        write(args.out, {"problems": problems})
        print(table(record), end="\n\n", flush=True)
    if args.show:
        print(*map(table, problems.values()), across.table(problems), sep="\n\n")
    draw({name: problems[name] for name in PROBLEMS if name in problems}, args.out.with_suffix(".png"))
    if one := {name: record for name, record in problems.items() if name == "transformer"}:
        draw(one, args.out.with_name(f"{args.out.stem}-transformer.png"))
    if off:
        sys.exit(f"another hypergradient than the one in float64: {', '.join(off)}")


if __name__ == "__main__":
    main()
