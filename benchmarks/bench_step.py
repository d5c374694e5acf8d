"""Cost of a whole optimizer step, and of the optimizer in a training step.

For the shapes of real models: FTPAdamW in each execution, FTPSGD, the wrapper, against torch's AdamW and SGD;
interleaved, medians, ratios, GB/s of the words that a step has to move, memory of the optimizer. Rounds with other load
are dropped.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision

import hyperopt_ftp as hft

from .measure import bandwidth, interleaved, machine, ratio
from .plain_ftp import PlainFTPAdamW
from .shapes import SHAPES

RESULTS = Path("benchmarks/results")

#: Full-size words (4 bytes) that a step has to move, by candidate: what is read and written once each.
WORDS = {
    "AdamW(fused)": 7,
    "FTPAdamW(fused)": 11,
    "FTPAdamW(fused), decay": 11,
    "FTPAdamW(fused), lean": 10,
    "FTP(AdamW(fused))": 13,
    "SGD(fused)": 5,
    "FTPSGD(fused)": 9,
}


def candidates(device: torch.device, shapes: list[torch.Size]) -> dict[str, Any]:
    """Optimizers over the same parameters: the state is what differs."""
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, device=device) * 0.02) for shape in shapes]
    for p in params:
        p.grad = torch.randn_like(p) * 1e-3
    lr, flags = 1e-4, {"weight_decay": 0.0}
    adamw, sgd = partial(torch.optim.AdamW, params, lr=lr, **flags), partial(torch.optim.SGD, params, lr=lr)
    return {
        "AdamW(fused)": adamw(fused=True),
        "AdamW(foreach)": adamw(foreach=True),
        "SGD(fused)": sgd(momentum=0.9, fused=True),
        "FTPAdamW(fused)": hft.FTPAdamW(params, lr=lr, fused=True),
        "FTPAdamW(fused), decay": hft.FTPAdamW(params, lr=lr, weight_decay=0.05, fused=True),
        "FTPAdamW(fused), lean": hft.FTPAdamW(params, lr=lr, fused=True, lean=True),
        "FTPAdamW(foreach)": hft.FTPAdamW(params, lr=lr, foreach=True),
        "FTPAdamW(single)": hft.FTPAdamW(params, lr=lr, foreach=False),
        "FTPSGD(fused)": hft.FTPSGD(params, lr=lr, momentum=0.9, fused=True),
        "FTP(AdamW(fused))": hft.FTP(adamw(fused=True)),
        "plain loop": PlainFTPAdamW(params, lr=lr),
    }


def measure(model: str, device: torch.device, rounds: int) -> dict[str, Any]:
    shapes = SHAPES[model]()
    found = candidates(device, shapes)
    steps: dict[str, Callable[[], Any]] = {name: opt.step for name, opt in found.items()}
    seconds = interleaved(steps, rounds, quiet=True)
    best = "triton" if device.type == "cuda" else "fused_cpu"
    assert {opt.execution for n, opt in found.items() if n.startswith(("FTPAdamW(fused", "FTPSGD(fused"))} == {best}
    count = sum(shape.numel() for shape in shapes)
    rows = {}
    for name, opt in found.items():
        median = statistics.median(seconds[name])
        rows[name] = {
            "median_ms": 1e3 * median,
            "ratio_to_adamw_fused": ratio(seconds, name, "AdamW(fused)"),
            "ratio_to_adamw_foreach": ratio(seconds, name, "AdamW(foreach)"),
            "execution": getattr(opt, "execution", None),
        }
        if name in WORDS:
            rows[name] |= {"words": WORDS[name], "gb_per_s": 4 * WORDS[name] * count / median / 1e9}
        if isinstance(opt, torch.optim.Optimizer):
            state = [t for s in opt.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
            rows[name]["state_bytes_per_weight"] = sum(t.numel() * t.element_size() for t in state) / count
        if device.type == "cuda":  # what a step needs beside the state
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
            opt.step()
            rows[name]["transient_bytes_per_weight"] = (torch.cuda.max_memory_allocated() - held) / count
    return {"parameters": count, "tensors": len(shapes), "rounds": len(seconds["AdamW(fused)"]), "steps": rows}


def training(device: torch.device, rounds: int, batch: int = 32) -> dict[str, Any]:
    """Forward, backward and step of EfficientNet-Lite0 at 224 x 224 with AdamW and with FTPAdamW."""
    from efficientnet_lite_pytorch import EfficientNet  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    model = EfficientNet.from_name("efficientnet-lite0", num_classes=100).to(device).train()
    x, y = torch.randn(batch, 3, 224, 224, device=device), torch.randint(100, (batch,), device=device)

    def backward() -> None:
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()

    backward()
    # Each after a backward pass, so that the caches are as in training.
    opts = {
        "AdamW(fused)": torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True),
        "FTPAdamW(fused)": hft.FTPAdamW(model.parameters(), lr=1e-6, fused=True),
    }
    parts: dict[str, list[float]] = {name: [] for name in (*opts, "forward and backward")}
    for k in range(rounds + 1):
        for name, opt in opts.items():
            seconds = interleaved({"forward and backward": backward, name: opt.step}, rounds=1, warmup=0)
            if k:
                for part, times in seconds.items():
                    parts[part] += times
    median = {name: statistics.median(times) for name, times in parts.items()}
    extra = median["FTPAdamW(fused)"] - median["AdamW(fused)"]
    base = median["forward and backward"]
    return {
        "model": "EfficientNet-Lite0",
        "batch": batch,
        "median_ms": {name: 1e3 * value for name, value in median.items()},
        "images_per_s": {name: batch / (base + median[name]) for name in opts},
        "extra_share_of_training_step": extra / (base + median["AdamW(fused)"]),
    }


def plot(record: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    from experiments.common.figures import SMALL, WIDTH, legend, save
    from experiments.common.looks import looks

    names = [n for n in record["models"]["vit_b_16"]["steps"] if n not in ("FTPAdamW(single)", "AdamW(fused)")]
    models = list(record["models"])
    figure = Figure(figsize=(WIDTH, 5), layout="constrained")
    axes, drawn = figure.subplots(), []
    for k, (model, look) in enumerate(looks(models).items()):
        rows = record["models"][model]["steps"]
        places = [i + (k - (len(models) - 1) / 2) * 0.8 / len(models) for i in range(len(names))]
        values = [rows[name]["ratio_to_adamw_fused"] for name in names]
        drawn.append(axes.barh(places, values, height=0.8 / len(models), color=look.colour))
    axes.set_yticks(range(len(names)), names, fontsize=SMALL)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("median time of a step / AdamW(fused=True)'s", fontsize=SMALL)
    axes.spines[["top", "right"]].set_visible(False)
    what = record["machine"]["cuda"] or f"{record['machine']['cpu']}, {record['machine']['threads']} threads"
    about = f"{what}, torch {record['machine']['torch']}, {record['machine']['date']}"
    figure.supxlabel(f"less is better\n{about}", fontsize=SMALL)
    legend(figure, drawn, models)
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="default: cpu")
    parser.add_argument("--models", nargs="+", default=list(SHAPES), choices=list(SHAPES), help="default: all")
    parser.add_argument("--rounds", type=int, default=15, help="timed steps of each optimizer (default: 15)")
    parser.add_argument("--no-training", action="store_true", help="leave the training step out")
    parser.add_argument("--out", type=Path, help="the JSON file (default: benchmarks/results/step_DEVICE.json)")
    args = parser.parse_args()
    device = torch.device(args.device)
    out = args.out or RESULTS / f"step_{device.type}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"machine": machine(), "bandwidth_gb_per_s": bandwidth(device), "models": {}}
    record["machine"]["torchvision"] = torchvision.__version__
    for model in args.models:
        record["models"][model] = measure(model, device, args.rounds)
        print(f"{model}, {record['models'][model]['parameters']:,} weights")
        for name, row in record["models"][model]["steps"].items():
            print(f"  {name:24} {row['median_ms']:9.2f} ms   {row['ratio_to_adamw_fused']:6.2f} x AdamW(fused)")
    if not args.no_training:
        record["training"] = training(device, args.rounds)
        print(json.dumps(record["training"], indent=1))
    out.write_text(json.dumps(record, indent=1) + "\n")
    if "vit_b_16" in args.models:
        plot(record, out.with_suffix(".png"))


if __name__ == "__main__":
    main()
