"""Kill trainings of every class and execution, and tunings by `bilevel`, at random moments: do they end bit-equal?"""

import argparse
import os
import random
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

from tests.crash import train, tune
from tests.crash.child import Program
from tests.crash.driver import crash
from tests.support.executions import FLAGS

COLUMNS = ("kills", "in a write", "restarts", "ends", "bit-equal")


#: By what the table calls them.
TRAININGS = {(name, how): train.program(name, how) for name, how in product(train.OPTIMIZERS, FLAGS)}
TUNINGS = {("bilevel", name): tune.program(name) for name in tune.VARIANTS}
TUNED = 0.4  # of the kills


def shared(kills: int, programs: dict[tuple[str, str], Program]) -> dict[tuple[str, str], tuple[Program, int]]:
    """The kills dealt out in turn."""
    return {case: (program, len(range(k, kills, len(programs)))) for k, (case, program) in enumerate(programs.items())}


def show(*row: object) -> None:
    print("".join(f"{cell!s:<12}" for cell in row).rstrip(), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, start = random.Random(args.seed), time.monotonic()
    tuned = round(TUNED * args.kills)
    outcomes = []
    show("class", "variant", *COLUMNS, "from steps", "wrong")
    with tempfile.TemporaryDirectory(prefix="crash") as folder:
        os.environ.setdefault("NUMBA_CACHE_DIR", f"{folder}/numba")  # compiled once, not at each start
        for case, (program, kills) in (shared(args.kills - tuned, TRAININGS) | shared(tuned, TUNINGS)).items():
            if kills:
                outcome = crash(program, kills, Path(folder, *case), rng)
                outcomes.append(outcome)
                steps = f"{min(outcome.resumed)}-{max(outcome.resumed)}"
                show(*case, *outcome.counts, steps, ", ".join(sorted(outcome.wrong)) or "-")
    show("all", "", *map(sum, zip(*(outcome.counts for outcome in outcomes), strict=True)))
    print(f"seed {args.seed}, {time.monotonic() - start:.0f} s")
    return int(any(outcome.wrong for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
