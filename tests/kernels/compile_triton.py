"""Compile the Triton kernels ahead of time, without a GPU, and print what the tests look at as JSON.

A process of its own: where TRITON_INTERPRET is set, triton does not compile. Arguments: names of VARIANTS; none: all.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hyperopt_ftp.kernels import triton_kernels as kernels

F32, BF16, F64 = kernels.tl.float32, kernels.tl.bfloat16, kernels.tl.float64
NUMBERS = ("lr", "beta1", "beta2", "eps", "weight_decay", "momentum", "dampening", "radius_lr", "kappa")
FP32 = {"T": F32, "W_T": F32, "G_T": F32, "W0_T": F32, "C_T": F32, "EXACT": False, "MAXIMIZE": False, "L2": False}
MIXED = FP32 | {"W_T": BF16, "G_T": BF16, "W0_T": BF16}  # bfloat16 weights, amp
LEAN = FP32 | {"C_T": BF16}
DOUBLE = {name: F64 if name.endswith("T") and name != "EXACT" else value for name, value in FP32.items()}
AMP = ("grad_scale", "found_inf")

BOTH, ONE = (90, 80), (90,)
ALL = ("partials", "radii", "move", "long_norms", "finish", "clip")
# "name-kernel-capability": kernel, capability, constants, optional pointers that are given
VARIANTS = {
    f"{name}-{kernel}-{capability}": (kernel, capability, constants | {"RULE": getattr(kernels, rule).value}, given)
    for name, rule, constants, given, used, capabilities in [
        ("adamw", "ADAMW", FP32, (), ALL, BOTH),
        ("bf16", "ADAMW", MIXED, AMP, ALL, BOTH),
        ("sgd", "MOMENTUM", FP32, (), ("move",), BOTH),
        ("project", "NOTHING", FP32, (), ("move",), BOTH),
        ("amsgrad", "AMSGRAD", FP32, (), ("move",), ONE),
        ("lean", "ADAMW", LEAN, (), ("move", "finish"), ONE),
        ("double", "ADAMW", DOUBLE, (), ("move", "finish"), ONE),
    ]
    for capability in capabilities
    for kernel in used
}


def compiled(kernel: str, capability: int, constants: dict, given: tuple[str, ...]) -> dict:
    function = getattr(kernels, kernel)
    real = "fp64" if constants["T"] == F64 else "fp32"
    kinds = {"layers": "*i64", "tiles": "*i32", "first": "i32"}
    kinds |= dict.fromkeys(("sums", "packed", "numbers"), f"*{real}") | dict.fromkeys(NUMBERS, "fp64")
    signature, values, hints = {}, {}, {}
    for i, name in enumerate(function.arg_names):
        if name in constants or (name in (*AMP, "lr_tensor") and name not in given):
            signature[name], values[name] = "constexpr", constants.get(name)
        else:
            signature[name] = kinds.get(name, "*fp32")
            if signature[name].startswith("*"):
                hints[(i,)] = [["tt.divisibility", 16]]  # torch allocates by 512 bytes
    options = {"num_warps": 16 if real == "fp64" else 8, "enable_fp_fusion": False}
    source = ASTSource(function, signature, constexprs=values, attrs=hints)
    binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return {
        "usage": usage(binary.asm["cubin"]),
        "shared": binary.metadata.shared,
        "traffic": traffic(kernel, binary.asm["ttir"]),
        "atomics": binary.asm["ptx"].count("atom."),
    }


def usage(cubin: bytes) -> dict[str, int]:
    """Registers, and bytes of stack and local memory, where spills go."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", text)}


def traffic(kernel: str, ttir: str) -> dict[str, dict[str, int]]:
    """Loads and stores of whole tiles by the tile's shape: ``{"2x1024": {"load f32": 10, ...}}``."""
    found: dict[str, Counter[str]] = {}
    for line in ttir.splitlines():
        operation = re.search(r"\btt\.(load|store)\b", line)
        shape = re.search(r"tensor<((?:\d+x)+)!tt\.ptr<(\w+)>>", line)
        if operation and shape:
            sides = [int(n) for n in shape[1].split("x")[:-1]]
            if math.prod(sides) >= 1024 and kernel in ("partials", "move", "finish"):
                place = "x".join(map(str, sides))
                found.setdefault(place, Counter())[f"{operation[1]} {shape[2]}"] += 1
    return {place: dict(sorted(counts.items())) for place, counts in sorted(found.items())}


if __name__ == "__main__":
    print(json.dumps({name: compiled(*VARIANTS[name]) for name in sys.argv[1:] or VARIANTS}))
