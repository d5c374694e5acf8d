"""What the compiler makes of the Triton kernels, ahead of time for sm_80 and sm_90: registers, vectors, traffic."""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from ..support.processes import run

pytest.importorskip("triton.backends.nvidia")
TRITON = tuple(int(part) for part in version("triton").split(".")[:2])

ROOT = Path(__file__).parents[2]

# Full-size traffic, in the caches too: the second of two loads of a row's W and W0 is for its projection.
TRAFFIC: dict[str, dict[str, int]] = {
    "adamw-partials": {"load f32": 2},  # g, c
    "adamw-move": {"load f32": 7, "store f32": 5},  # W, g, m, v, W0 and W, W0; m, v, c, W and W
    "bf16-partials": {"load bf16": 1, "load f32": 1},
    "bf16-move": {"load bf16": 4, "load f32": 4, "store bf16": 2, "store f32": 3},
    "sgd-move": {"load f32": 6, "store f32": 4},  # W, g, b, W0 and W, W0; b, c, W and W
    "project-move": {"load f32": 4, "store f32": 3},
    "amsgrad-move": {"load f32": 8, "store f32": 6},
    "lean-move": {"load f32": 7, "store f32": 4, "store bf16": 1},
    "double-move": {"load f64": 7, "store f64": 5},
}


@pytest.fixture(scope="module")
def compiled() -> dict[str, Any]:
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "TRITON_DEFAULT_FP_FUSION")}
    command = [sys.executable, "-W", "error", str(ROOT / "tests/kernels/compile_triton.py")]
    done = run(command, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(TRITON < (3, 8), reason="older ones spill 16 bytes in the bfloat16 step on sm_80")
def test_nothing_spills_and_two_blocks_fit_a_multiprocessor(compiled: dict[str, Any]):
    for name, result in compiled.items():
        usage = result["usage"]
        assert usage["STACK"] == usage["LOCAL"] == 0, f"{name}: {usage}"
        assert usage["REG"] <= 128, f"{name}: {usage}"  # of 65536, for 2 blocks of 8 warps


def test_no_atomics_so_runs_repeat(compiled: dict[str, Any]):
    assert {name: result["atomics"] for name, result in compiled.items()} == dict.fromkeys(compiled, 0)


def test_traffic_is_that_of_the_table(compiled: dict[str, Any]):
    seen = set()
    for name, result in compiled.items():
        variant = name.rsplit("-", 1)[0]
        if variant not in TRAFFIC:
            continue
        seen.add(variant)
        assert result["traffic"] == TRAFFIC[variant], name
    assert seen == set(TRAFFIC)
