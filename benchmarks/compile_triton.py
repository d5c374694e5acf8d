"""Compile the Triton kernels ahead of time, without a GPU, and print what the compiler made of them as JSON.

A process of its own: where TRITON_INTERPRET is set, triton does not compile. Arguments: names of VARIANTS; none: all.
"""

from __future__ import annotations

import json
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
NUMBERS = ("lr", "beta1", "beta2", "eps", "weight_decay", "momentum", "radius_lr", "kappa")
FP32 = {"T": F32, "W_T": F32, "G_T": F32, "W0_T": F32, "C_T": F32, "EXACT": False, "MAXIMIZE": False, "L2": False}
MIXED = FP32 | {"W_T": BF16, "G_T": BF16, "W0_T": BF16}  # bfloat16 weights, amp
LEAN = FP32 | {"C_T": BF16}
DOUBLE = {name: F64 if name.endswith("T") and name != "EXACT" else value for name, value in FP32.items()}
AMP = ("grad_scale", "found_inf")

CAPABILITIES = (80, 90, 100)
ALL = ("partials", "radii", "move", "clip")
# "name-kernel-capability": kernel, capability, constants, optional pointers that are given
VARIANTS = {
    f"{name}-{kernel}-{capability}": (kernel, capability, constants | {"RULE": getattr(kernels, rule).value}, given)
    for name, rule, constants, given, used in [
        ("adamw", "ADAMW", FP32, (), ALL),
        ("bf16", "ADAMW", MIXED, AMP, ALL),
        ("lean", "ADAMW", LEAN, (), ("partials", "move")),
        ("amsgrad", "AMSGRAD", FP32, (), ("radii", "move")),
        ("sgd", "MOMENTUM", FP32, (), ("radii", "move")),
        ("nesterov", "NESTEROV", FP32, (), ("radii", "move")),
        ("project", "NOTHING", FP32, (), ("radii", "move")),
        ("double", "ADAMW", DOUBLE, (), ALL),
    ]
    for kernel in used
    for capability in CAPABILITIES
}
SIZES = {"f64": 8, "f32": 4, "bf16": 2, "f16": 2}


def compiled(kernel: str, capability: int, constants: dict, given: tuple[str, ...]) -> dict:
    function = getattr(kernels, kernel)
    real = "fp64" if constants["T"] == F64 else "fp32"
    kinds = {"layers": "*i64", "owners": "*i32"}
    kinds |= dict.fromkeys(("sums", "packed", "numbers"), f"*{real}") | dict.fromkeys(NUMBERS, "fp64")
    signature, values, hints = {}, {}, {}
    for i, name in enumerate(function.arg_names):
        if name in constants or (name in (*AMP, "lr_tensor") and name not in given):
            signature[name], values[name] = "constexpr", constants.get(name)
        else:
            signature[name] = kinds.get(name, "*fp32")
            if signature[name].startswith("*"):
                hints[(i,)] = [["tt.divisibility", 16]]  # torch allocates by 512 bytes
    options = {"num_warps": 8, "enable_fp_fusion": False}
    source = ASTSource(function, signature, constexprs=values, attrs=hints)
    binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    passes = passes_of(binary.asm["ttir"]) if kernel in ("partials", "move") else []
    return {
        "usage": usage(binary.asm["cubin"]),
        "shared": binary.metadata.shared,
        "passes": passes,
        "bytes": [sum(SIZES[key.split()[1]] * count for key, count in one.items()) for one in passes],
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


def passes_of(ttir: str) -> list[dict[str, int]]:
    """Loads and stores of an element in each pass over a row: ``[{"load f32": 5, ...}, ...]``."""
    loops = [traffic(part) for part in ttir.split("scf.for")[1:]]
    return [one for one in loops if one]


def traffic(ttir: str) -> dict[str, int]:
    """Loads and stores of a turn's elements: ``{"load f32": 10, ...}``."""
    lines = (line for line in ttir.splitlines() if f"tensor<{kernels.BLOCK.value}x!tt.ptr" in line)
    found = (re.search(r"\btt\.(load|store)\b.*!tt\.ptr<(\w+)>", line) for line in lines)
    return dict(sorted(Counter(f"{x[1]} {x[2]}" for x in found if x).items()))


if __name__ == "__main__":
    print(json.dumps({name: compiled(*VARIANTS[name]) for name in sys.argv[1:] or VARIANTS}))
