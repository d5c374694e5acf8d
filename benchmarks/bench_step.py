"""Cost of a whole optimizer step.

For the shapes of real models: FTPAdamW in each execution, FTPSGD, the wrapper, against torch's AdamW and SGD;
interleaved, medians, ratios, GB/s of the words that a step has to move, memory of the optimizer. Rounds with other load
are dropped.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision

import hyperopt_ftp as hft

from .measure import RESULTS, bandwidth, machine, of_steps, options, ratio, write
from .plain_ftp import PlainFTPAdamW
from .shapes import SHAPES

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
    count = sum(shape.numel() for shape in shapes)
    seconds, rows = of_steps(found, rounds, count)
    best = "triton" if device.type == "cuda" else "fused_cpu"
    assert {opt.execution for n, opt in found.items() if n.startswith(("FTPAdamW(fused", "FTPSGD(fused"))} == {best}
    for name, opt in found.items():
        for to in ("fused", "foreach"):
            rows[name][f"ratio_to_adamw_{to}"] = ratio(seconds, name, f"AdamW({to})")
        if name in WORDS:
            moved = 4 * WORDS[name] * count
            rows[name] |= {"words": WORDS[name], "gb_per_s": moved / rows[name]["median_ms"] / 1e6}
        if device.type == "cuda":  # what a step needs beside the state
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
            opt.step()
            rows[name]["transient_bytes_per_weight"] = (torch.cuda.max_memory_allocated() - held) / count
    return {"parameters": count, "tensors": len(shapes), "rounds": len(seconds["AdamW(fused)"]), "steps": rows}


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
    parser = options(__doc__, None, rounds=15)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="default: cpu")
    parser.add_argument("--models", nargs="+", default=list(SHAPES), choices=list(SHAPES), help="default: all")
    args = parser.parse_args()
    device = torch.device(args.device)
    out = args.out or RESULTS / f"step_{device.type}.json"
    record: dict[str, Any] = {"machine": machine(), "bandwidth_gb_per_s": bandwidth(device), "models": {}}
    record["machine"]["torchvision"] = torchvision.__version__
    for model in args.models:
        record["models"][model] = measure(model, device, args.rounds)
        print(f"{model}, {record['models'][model]['parameters']:,} weights")
        for name, row in record["models"][model]["steps"].items():
            print(f"  {name:24} {row['median_ms']:9.2f} ms   {row['ratio_to_adamw_fused']:6.2f} x AdamW(fused)")
    write(out, record)
    if "vit_b_16" in args.models:
        plot(record, out.with_suffix(".png"))


if __name__ == "__main__":
    main()
