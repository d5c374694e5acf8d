"""Kill trainings of every class and execution at random moments; do they end bit-equal to undisturbed ones?"""

import argparse
import os
import random
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

from tests.crash.driver import crash
from tests.crash.train import OPTIMIZERS
from tests.support.executions import FLAGS

COLUMNS = ("kills", "in a write", "restarts", "ends", "bit-equal")


def show(*row: object) -> None:
    print("".join(f"{cell!s:<12}" for cell in row).rstrip(), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, start = random.Random(args.seed), time.monotonic()
    cases = list(product(OPTIMIZERS, FLAGS))
    shares = [len(range(k, args.kills, len(cases))) for k in range(len(cases))]
    outcomes = []
    show("class", "execution", *COLUMNS, "from steps", "wrong")
    with tempfile.TemporaryDirectory(prefix="crash") as folder:
        os.environ.setdefault("NUMBA_CACHE_DIR", f"{folder}/numba")  # compiled once, not at each start
        for case, kills in zip(cases, shares, strict=True):
            if kills:
                outcome = crash(*case, kills, Path(folder, *case), rng)
                outcomes.append(outcome)
                steps = f"{min(outcome.resumed)}-{max(outcome.resumed)}"
                show(*case, *outcome.counts, steps, ", ".join(sorted(outcome.wrong)) or "-")
    show("all", "", *map(sum, zip(*(outcome.counts for outcome in outcomes), strict=True)))
    print(f"seed {args.seed}, {time.monotonic() - start:.0f} s")
    return int(any(outcome.wrong for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
