"""Cost of a whole optimizer step.

For the shapes of real models: FTPAdamW in each execution, FTPSGD, the wrapper, against torch's AdamW and SGD;
interleaved, medians, ratios, memory of the optimizer. Rounds with other load are dropped.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torchvision

import hyperopt_ftp as hft

from .measure import MODELS, RESULTS, machine, of_steps, options, shapes_of, weights_of, write
from .plain import PlainFTPAdamW

RATIOS = {f"ratio_to_adamw_{kind}": f"AdamW({kind})" for kind in ("fused", "foreach")}


def candidates(params: list[torch.Tensor]) -> dict[str, Any]:
    """Optimizers over the same parameters: the state is what differs."""
    lr = 1e-4
    adamw = partial(torch.optim.AdamW, params, lr=lr, weight_decay=0.0)
    return {
        "AdamW(fused)": adamw(fused=True),
        "AdamW(foreach)": adamw(foreach=True),
        "SGD(fused)": torch.optim.SGD(params, lr=lr, momentum=0.9, fused=True),
        "FTPAdamW(fused)": hft.FTPAdamW(params, lr=lr, fused=True),
        "FTPAdamW(fused), decay": hft.FTPAdamW(params, lr=lr, weight_decay=0.05, fused=True),
        "FTPAdamW(fused), lean": hft.FTPAdamW(params, lr=lr, fused=True, lean=True),
        "FTPAdamW(foreach)": hft.FTPAdamW(params, lr=lr, foreach=True),
        "FTPAdamW(single)": hft.FTPAdamW(params, lr=lr, foreach=False),
        "FTPSGD(fused)": hft.FTPSGD(params, lr=lr, momentum=0.9, fused=True),
        "FTP(AdamW(fused))": hft.FTP(adamw(fused=True)),
        "plain loop": PlainFTPAdamW(params, lr=lr),
    }


def measure(model: str, device: str, rounds: int) -> dict[str, Any]:
    params = weights_of(shapes_of(model), device)
    found = candidates(params)
    record = of_steps(model, found, rounds, params, RATIOS)
    best = "triton" if device == "cuda" else "fused_cpu"
    assert {opt.execution for n, opt in found.items() if n.startswith(("FTPAdamW(fused", "FTPSGD(fused"))} == {best}
    return record


def main() -> None:
    parser = options(__doc__, None, rounds=15)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="default: cpu")
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS, help="default: all")
    args = parser.parse_args()
    about = {**machine(), "torchvision": torchvision.__version__}
    models = {model: measure(model, args.device, args.rounds) for model in args.models}
    write(args.out or RESULTS / f"step_{args.device}.json", {"machine": about, "models": models})


if __name__ == "__main__":
    main()
