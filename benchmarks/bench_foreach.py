"""Step time of FTPAdamW's foreach execution against AdamW(foreach=True) and the rule as a plain loop.

Shapes of ViT-B/16 (86 M parameters, 152 tensors), float32. Prints ratios of medians and writes them as JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch
from torchvision.models import vit_b_16

import hyperopt_ftp as hft

from .measure import interleaved, machine, ratio
from .plain_ftp import PlainFTPAdamW


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="timed steps of each optimizer (default: 15)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/foreach.json"), help="the JSON file")
    args = parser.parse_args()

    with torch.device("meta"):
        shapes = [p.shape for p in vit_b_16().parameters()]
    torch.manual_seed(0)

    def weights() -> list[torch.nn.Parameter]:
        made = [torch.nn.Parameter(torch.randn(shape) * 0.02) for shape in shapes]
        for p in made:
            p.grad = torch.randn_like(p) * 1e-3
        return made

    ftp = hft.FTPAdamW(weights(), lr=1e-4, foreach=True)
    candidates = {
        "AdamW(foreach=True)": torch.optim.AdamW(weights(), lr=1e-4, weight_decay=0.0, foreach=True).step,
        "FTPAdamW(foreach=True)": ftp.step,
        "plain loop": PlainFTPAdamW(weights(), lr=1e-4).step,
    }
    seconds = interleaved(candidates, args.rounds)
    assert ftp.execution == "foreach"
    record = {
        "shapes": "ViT-B/16",
        "parameters": sum(s.numel() for s in shapes),
        "tensors": len(shapes),
        "rounds": args.rounds,
        "median_seconds": {name: statistics.median(times) for name, times in seconds.items()},
        "ratio_to_adamw_foreach": {name: ratio(seconds, name, "AdamW(foreach=True)") for name in candidates},
        "machine": machine(),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=1) + "\n")
    for name, value in record["ratio_to_adamw_foreach"].items():
        print(f"{name:24} {1000 * record['median_seconds'][name]:8.1f} ms   {value:5.2f} x AdamW(foreach=True)")


if __name__ == "__main__":
    main()
