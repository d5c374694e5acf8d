"""What a way of fine-tuning costs in training: whole steps (forward, backward, optimizer) of real networks,
interleaved, medians with quartiles, as multiples of AdamW's. Rounds with other load are dropped."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import hyperopt_ftp as hft

from .measure import interleaved, machine, options, ratio, write
from .plain import PlainFTPAdamW, PlainTPGM

CLASSES, SIDE, LR = 100, 224, 1e-4
TENTH = 10  # TPGM is often run in one step of so many

MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet50": lambda: torchvision.models.resnet50(num_classes=CLASSES),
    "vit_s_16": lambda: torchvision.models.VisionTransformer(SIDE, 16, 12, 6, 384, 1536, num_classes=CLASSES),
    "swin_t": lambda: torchvision.models.swin_t(num_classes=CLASSES),
}

Named = list[tuple[str, nn.Parameter]]


def adamw(named: Named) -> torch.optim.Optimizer:
    return torch.optim.AdamW(named, lr=LR, weight_decay=0.01, fused=True)


OPTIMIZERS: dict[str, Callable[[Named], Any]] = {
    "AdamW": adamw,
    "FTPAdamW (fused)": lambda named: hft.FTPAdamW(named, lr=LR, weight_decay=0.01, fused=True),
    "FTPAdamW (foreach)": lambda named: hft.FTPAdamW(named, lr=LR, weight_decay=0.01, foreach=True),
    "FTP around AdamW": lambda named: hft.FTP(adamw(named)),
    "MARS-SP": lambda named: hft.MARSSP(adamw(named), radius=0.1),
    "L2-SP": lambda named: hft.L2SP(adamw(named), strength=0.1),
    "L2-SP decoupled": lambda named: hft.L2SP(adamw(named), strength=10.0, decoupled=True),
    "SPD": lambda named: hft.SPD(adamw(named)),
    "FTP, plain loop": lambda named: PlainFTPAdamW([p for _, p in named], LR),
}


def candidates(model: nn.Module, batch: int) -> tuple[dict[str, Callable[[], None]], dict[str, Any]]:
    """A step of each, with weights of its own and the same pictures; and the optimizers."""
    torch.manual_seed(0)
    x, x_out = (torch.randn(batch, 3, SIDE, SIDE).to(memory_format=torch.channels_last) for _ in range(2))
    y, y_out = (torch.randint(CLASSES, (batch,)) for _ in range(2))

    def step(network: nn.Module, optimizer: Any, tpgm: PlainTPGM | None = None) -> None:
        network.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimizer.step()
        if tpgm is not None:
            tpgm.step(F.cross_entropy, x_out, y_out)

    found, optimizers = {}, {}
    for name, make in {**OPTIMIZERS, "TPGM": adamw}.items():
        network = copy.deepcopy(model)
        optimizer = optimizers[name] = make(list(network.named_parameters()))
        tpgm = PlainTPGM(network) if name == "TPGM" else None
        found[name] = lambda network=network, optimizer=optimizer, tpgm=tpgm: step(network, optimizer, tpgm)
    return found, optimizers


def measure(name: str, batch: int, rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = MODELS[name]()
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    for module in model.modules():  # as in fine-tuning with frozen statistics: no step changes what another one sees
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    found, optimizers = candidates(model, batch)
    seconds = interleaved(found, rounds, quiet=True)
    # One step with TPGM after nine without, from the medians of this run.
    plain, whole = (statistics.median(seconds[which]) for which in ("AdamW", "TPGM"))
    rows = {}
    for which, times in seconds.items():
        low, _, high = statistics.quantiles(times, n=4)
        rows[which] = {
            "steps_per_second": 1 / statistics.median(times),
            "ratio": ratio(seconds, which, "AdamW"),
            "quartiles": [low / plain, high / plain],
            "execution": getattr(optimizers[which], "execution", None),
        }
    every = ((TENTH - 1) * plain + whole) / TENTH
    rows[f"TPGM, every {TENTH}th step"] = {"steps_per_second": 1 / every, "ratio": every / plain, "computed": True}
    record = {"parameters": sum(p.numel() for p in model.parameters()), "batch": batch, "side": SIDE}
    return {**record, "rounds": len(seconds["AdamW"]), "steps": rows}


def main() -> None:
    parser = options(__doc__, "training_cpu.json", rounds=9)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--batch", type=int, default=8, help="pictures in a step (default: 8)")
    args = parser.parse_args()
    record: dict[str, Any] = {"machine": machine(), "models": {}}
    for name in args.models:
        found = record["models"][name] = measure(name, args.batch, args.rounds)
        print(f"{name}, {found['parameters']:,} weights, {found['batch']} pictures of {SIDE} pixels a step")
        for which, row in found["steps"].items():
            spread = "computed" if "computed" in row else "{:.2f} to {:.2f}".format(*row["quartiles"])
            print(f"  {which:24} {row['steps_per_second']:7.3f} steps/s   {row['ratio']:5.2f} x AdamW   ({spread})")
        write(args.out, record)


if __name__ == "__main__":
    main()
