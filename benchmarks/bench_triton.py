"""What is known of the Triton kernels without a GPU: what the compiler makes of them, and the time that follows.

Compiled ahead of time. A step's time is predicted from the bytes that it moves and a card's bandwidth: nothing is
measured. With ``--measured`` the steps that ``bench_step --device cuda`` has timed are compared with the prediction.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .measure import MODELS, options, published, shapes_of, write

#: GB/s of the memory, by the makers' data sheets; and how torch names the card.
CARDS = {"A100": (2039, "A100-SXM4-80GB"), "H100": (3350, "H100 80GB HBM3")}
#: Contenders of bench_step by the kernels' variant that each one runs.
RUNS = {
    "FTPAdamW(fused)": "adamw", "FTPAdamW(fused), decay": "adamw", "FTPAdamW(fused), lean": "lean",
    "FTPSGD(fused)": "sgd",
}  # fmt: skip
#: Bytes a weight of torch's own: it reads W, g, m, v and writes W, m, v.
ADAMW = 28
PLACES = ("partials", "move", "radii", "clip")


def compiled(names: list[str] | None = None) -> dict[str, Any]:
    """By ``variant-kernel-capability``; in a process of its own, since an interpreter of kernels may be on here."""
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "TRITON_DEFAULT_FP_FUSION")}
    command = [sys.executable, "-W", "error", "-m", "benchmarks.compile_triton", *(names or ())]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[1])
    if done.returncode:
        raise RuntimeError(f"the kernels could not be compiled:\n{done.stderr}")
    return json.loads(done.stdout)


def moved(kernels: dict[str, Any], variant: str) -> tuple[int, int]:
    """Bytes a weight that a step moves: where a row is read again from the caches, and where it is not."""
    rows = [kernels.get(f"{variant}-{name}-90") or kernels[f"adamw-{name}-90"] for name in ("partials", "move")]
    return sum(row["bytes"][0] for row in rows), sum(sum(row["bytes"]) for row in rows)


def milliseconds(weights: int, size: int, bandwidth: float) -> float:
    """Of so many weights with ``size`` bytes each, at so many GB/s."""
    return 1e-6 * weights * size / bandwidth


def predictions(kernels: dict[str, Any], counts: dict[str, int]) -> list[dict[str, Any]]:
    """A row for each card, model and optimizer."""
    return [
        {
            "card": card,
            "model": model,
            "optimizer": optimizer,
            "ms": [milliseconds(weights, size, bandwidth) for size in moved(kernels, RUNS[optimizer])],
            "ms_adamw": milliseconds(weights, ADAMW, bandwidth),
        }
        for card, (bandwidth, _) in CARDS.items()
        for model, weights in counts.items()
        for optimizer in ("FTPAdamW(fused)", "FTPAdamW(fused), lean", "FTPSGD(fused)")
    ]


def table(record: dict[str, Any]) -> str:
    """Markdown: the kernels, and then the predictions."""
    kernels, lines = record["kernels"], []
    capabilities = sorted({int(name.rsplit("-", 1)[1]) for name in kernels})
    lines.append(
        f"| kernel | registers on {', '.join(f'sm_{c}' for c in capabilities)} | spilled | shared | bytes moved |"
    )
    lines.append("|---|--:|--:|--:|--:|")
    names = dict.fromkeys(name.rsplit("-", 1)[0] for name in kernels)
    order = sorted(names, key=lambda name: PLACES.index(name.split("-")[1]))
    for name in order:
        rows = [kernels[f"{name}-{c}"] for c in capabilities]
        spills = max(row["usage"]["LOCAL"] + row["usage"]["STACK"] for row in rows)
        first, *again = rows[0]["bytes"] or (0,)
        bytes_moved = " + ".join(map(str, (first, *again))) if first else ""
        registers = ", ".join(str(row["usage"]["REG"]) for row in rows)
        variant, kernel = name.split("-")
        shared = max(row["shared"] for row in rows)
        lines.append(f"| `{kernel}`, {variant} | {registers} | {spills} | {shared} | {bytes_moved} |")
    lines += ["", "| **predicted**, ms | " + " | ".join(record["weights"]) + " |"]
    lines.append("|---|" + "--:|" * len(record["weights"]))
    for card in CARDS:
        own = [row for row in record["predicted"] if row["card"] == card]
        plain = {row["model"]: f"{row['ms_adamw']:.2f}" for row in own}
        lines.append(f"| {card}: `AdamW(fused=True)` | {' | '.join(plain[model] for model in record['weights'])} |")
        for optimizer in dict.fromkeys(row["optimizer"] for row in own):
            found = {row["model"]: row["ms"] for row in own if row["optimizer"] == optimizer}
            cells = [f"{found[model][0]:.2f} to {found[model][1]:.2f}" for model in record["weights"]]
            lines.append(f"| {card}: `{optimizer}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def compared(kernels: dict[str, Any], measured: dict[str, Any]) -> str:
    """A line for each step that was timed and has a prediction, on the card that it was timed on."""
    name = measured["machine"]["cuda"] or "no GPU"
    bandwidth = next((speed for speed, title in CARDS.values() if title in name), None)
    if bandwidth is None:
        return f"{name}: no bandwidth is known here, so nothing is predicted; add it to CARDS\n"
    lines = [f"{name}, {bandwidth} GB/s: measured ms, predicted, and measured / predicted"]
    for model, found in measured["models"].items():
        for optimizer, variant in {"AdamW(fused)": None, **RUNS}.items():
            least, most = (ADAMW, ADAMW) if variant is None else moved(kernels, variant)
            low, high = (milliseconds(found["parameters"], size, bandwidth) for size in (least, most))
            time = found["steps"][optimizer]["median_ms"]
            lines.append(
                f"  {model:14} {optimizer:24} {time:8.3f}   {low:7.3f} to {high:7.3f}   {time / high:5.2f} to "
                f"{time / low:5.2f}"
            )
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = options(__doc__, "triton.json")
    parser.add_argument("--page", type=Path, default=Path("docs/reference/triton.md"), help="that gets the tables")
    parser.add_argument("--measured", type=Path, help="a record of bench_step on a GPU: compare, and write nothing")
    args = parser.parse_args(arguments)
    if args.measured:
        kernels = compiled([f"{v}-{k}-90" for v in ("adamw", "lean") for k in ("partials", "move")] + ["sgd-move-90"])
        print(compared(kernels, json.loads(args.measured.read_text())))
        return
    kernels = compiled()
    counts = {model: sum(shape.numel() for shape in shapes_of(model)) for model in MODELS}
    record = {
        "triton": version("triton"),
        "bandwidth": {card: speed for card, (speed, _) in CARDS.items()},
        "weights": counts,
        "kernels": kernels,
        "predicted": predictions(kernels, counts),
    }
    print(table(record))
    write(args.out, record)
    args.page.write_text(published(args.page.read_text(), "bench_triton", table(record)))


if __name__ == "__main__":
    main()
