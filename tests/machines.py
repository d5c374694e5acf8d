"""Run `make test` as other machines would: other instructions, two threads, other work beside.

A CPU's instructions decide in which order sums are made. A test that fails under one of the switches has a bound that
holds by luck; CONTRIBUTING says how a bound is derived.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

from .support.processes import start

ROOT = Path(__file__).parent.parent

#: What torch's own loops, oneDNN (convolutions) and MKL (products of matrices, LAPACK) may use.
INSTRUCTIONS = {
    "oldest": {"ATEN_CPU_CAPABILITY": "default", "DNNL_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "DNNL_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2"},
    "own": {},
}
MACHINES = {f"{name}-{n}": {**env, "THREADS": str(n)} for (name, env), n in product(INSTRUCTIONS.items(), (1, 2))}
MACHINES["busy"] = {"THREADS": "1"}
#: Two processes of two threads share two cores: those that wait shall not spin.
PATIENT = {"OMP_WAIT_POLICY": "PASSIVE"}


@contextmanager
def other_work(processes: int) -> Iterator[None]:
    each = [start([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in each:
            process.kill()
            process.communicate()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=MACHINES, default=list(MACHINES), metavar="MACHINE")
    parser.add_argument("--times", type=int, default=1, help="of each, in a row")
    parser.add_argument("--target", default="test", help="of the Makefile")
    parser.add_argument("--logs", type=Path, default=ROOT / "runs/machines", help="folder for what pytest prints")
    args = parser.parse_args()
    args.logs.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name, k in product(args.only, range(args.times)):
        begin, file = time.monotonic(), args.logs / f"{name}-{k}.log"
        command = ["make", args.target, f"THREADS={MACHINES[name]['THREADS']}"]
        with file.open("w") as log, other_work(2 if name == "busy" else 0):
            environment = os.environ | MACHINES[name] | PATIENT
            done = subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
        failed += done.returncode != 0
        said = re.findall(r"\d+ (?:passed|failed|errors?|skipped)", file.read_text())
        print(f"{name:10} {', '.join(said)} in {time.monotonic() - begin:.0f} s", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
