"""What ``import hyperopt_ftp`` adds to ``import torch``: seconds (medians of new processes), and modules by library.

Each process imports torch, then the package, and times the two apart, so that drift of the machine hits both alike.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections import Counter
from typing import Any

from .measure import machine, options, write

CODE = """
import json, sys, time
begin = time.perf_counter()
import torch
between, there = time.perf_counter(), set(sys.modules)
import hyperopt_ftp
print(json.dumps([between - begin, time.perf_counter() - between, sorted(set(sys.modules) - there)]))
"""
OPTIONAL = ("torchopt", "triton", "numba", "matplotlib", "timm", "transformers")


def measure(rounds: int) -> dict[str, Any]:
    def once() -> tuple[float, float, list[str]]:
        done = subprocess.run([sys.executable, "-c", CODE], env=environment, check=True, capture_output=True, text=True)
        return json.loads(done.stdout)

    # An installed package has its bytecode.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    once()  # files are in the page cache, bytecode is written
    runs = [once() for _ in range(rounds)]
    torch_seconds, seconds, modules = zip(*runs, strict=True)
    libraries = Counter(name.partition(".")[0] for name in modules[0])
    return {
        "rounds": rounds,
        "torch_ms": 1e3 * statistics.median(torch_seconds),
        "hyperopt_ftp_ms": 1e3 * statistics.median(seconds),
        "hyperopt_ftp_ms_slowest": 1e3 * max(seconds),
        "new_modules": dict(libraries.most_common()),
        "optional_imported": [name for name in OPTIONAL if name in libraries],
    }


def main() -> None:
    args = options(__doc__, "import.json", rounds=21).parse_args()
    found = measure(args.rounds)
    print(f"import torch {found['torch_ms']:.0f} ms, then import hyperopt_ftp {found['hyperopt_ftp_ms']:.1f} ms")
    print(f"new modules: {found['new_modules']}; of the optional libraries: {found['optional_imported'] or 'none'}")
    write(args.out, {"machine": machine(), **found})


if __name__ == "__main__":
    main()
