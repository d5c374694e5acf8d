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

# Tiles in an aligned and an unaligned branch each; a row of 4096, aligned.
TILES = {"32x64": 2, "8x256": 2, "2x1024": 2, "1x2048": 2, "1x4096": 1}
PIECES = {"1x2048": 2}

# Full-size traffic in one branch: the table in hyperopt_ftp/kernels/triton.py.
TRAFFIC: dict[str, dict[str, int]] = {
    "adamw-partials": {"load f32": 2},  # g, c
    "adamw-move": {"load f32": 5, "store f32": 4},  # W, g, m, v, W0; m, v, c, W
    "adamw-finish": {"load f32": 2, "store f32": 1},  # W, W0; W
    "bf16-partials": {"load bf16": 1, "load f32": 1},
    "bf16-move": {"load bf16": 3, "load f32": 3, "store bf16": 1, "store f32": 3},  # W, g, W0 | m, v, c; W | m, v, c
    "bf16-finish": {"load bf16": 1, "load f32": 1, "store bf16": 1},  # W0 | c; W
    "sgd-move": {"load f32": 4, "store f32": 3},  # W, g, b, W0; b, c, W
    "project-move": {"load f32": 2, "store f32": 2},  # W, W0; c, W
    "amsgrad-move": {"load f32": 6, "store f32": 5},
    "lean-move": {"load f32": 5, "store f32": 3, "store bf16": 1},
    "lean-finish": {"load f32": 2, "store f32": 1},
    "double-move": {"load f64": 5, "store f64": 4},
    "double-finish": {"load f64": 2, "store f64": 1},
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
        assert usage["REG"] <= 128, f"{name}: {usage}"  # of 65536, for 2 blocks of 8 warps (1 of 16)


def test_no_atomics_so_runs_repeat(compiled: dict[str, Any]):
    assert {name: result["atomics"] for name, result in compiled.items()} == dict.fromkeys(compiled, 0)


def test_traffic_is_that_of_the_table(compiled: dict[str, Any]):
    seen = set()
    for name, result in compiled.items():
        variant = name.rsplit("-", 1)[0]
        if variant not in TRAFFIC:
            continue
        seen.add(variant)
        branches = PIECES if "finish" in variant else TILES
        expected = {shape: {k: n * times for k, n in TRAFFIC[variant].items()} for shape, times in branches.items()}
        assert result["traffic"] == expected, name
    assert seen == set(TRAFFIC)
