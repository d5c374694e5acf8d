"""A whole step of each class of the family around AdamW(fused=True), as a multiple of that step alone, and the bytes of
its state; with ``--eight-bits`` of FTP around optimizers with states of 8 bits. Interleaved, medians; rounds with other
load are dropped."""

from __future__ import annotations

import contextlib
import inspect
import io
import tempfile
from collections.abc import Callable
from functools import partial

import torch
from safetensors.torch import save_file

import hyperopt_ftp as hft
from hyperopt_ftp.torch_optim.drop_in import DropIn

from .measure import MODELS, RESULTS, copies, machine, of_steps, options, shapes_of, weights_of, write

GIVEN = {"radius": 0.1}  # options without a default
Make = Callable[[torch.optim.Optimizer], torch.optim.Optimizer]
Params = Callable[[], list[tuple[str, torch.Tensor]]]


def adamw(params: Params) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params(), lr=1e-4, weight_decay=0.0, fused=True)


def family() -> dict[str, Make]:
    """The package's classes around an optimizer; those with a rule that is off by default, with it too."""
    found = {}
    for name, exported in vars(hft).items():
        if isinstance(exported, type) and issubclass(exported, DropIn):
            options = inspect.signature(exported).parameters
            if "base" in options:
                make = partial(exported, **{key: value for key, value in GIVEN.items() if key in options})
                found[name] = make
                for key in options:
                    if options[key].default is False:
                        found[f"{name}({key}=True)"] = partial(make, **{key: True})
    return found


def of_family(params: Params, folder: str) -> dict[str, torch.optim.Optimizer]:
    return {"AdamW(fused)": adamw(params), **{name: make(adamw(params)) for name, make in family().items()}}


def of_eight_bits(params: Params, folder: str) -> dict[str, torch.optim.Optimizer]:
    """One has its anchor in a file in ``folder``."""
    with contextlib.redirect_stdout(io.StringIO()):
        import bitsandbytes
        import torchao.optim
    file = f"{folder}/anchor.safetensors"
    save_file({name: p.detach() for name, p in params()}, file)

    bnb, ao = bitsandbytes.optim.AdamW8bit, torchao.optim.AdamW8bit
    return {
        "AdamW(fused)": adamw(params),
        "FTPAdamW": hft.FTPAdamW(params(), lr=1e-4),
        "FTPAdamW(lean)": hft.FTPAdamW(params(), lr=1e-4, lean=True),
        "bitsandbytes AdamW8bit": bnb(params(), lr=1e-4),
        "FTP(bitsandbytes AdamW8bit)": hft.FTP(bnb(params(), lr=1e-4)),
        "the same, anchor in a file": hft.FTP(bnb(params(), lr=1e-4), anchor=file),
        "torchao AdamW8bit": ao(params(), lr=1e-4),
        "FTP(torchao AdamW8bit)": hft.FTP(ao(params(), lr=1e-4)),
    }


def main() -> None:
    parser = options(__doc__, None, rounds=9)
    parser.add_argument("--model", default="resnet50", choices=MODELS)
    parser.add_argument("--eight-bits", action="store_true", help="optimizers with states of 8 bits (extra bases)")
    args = parser.parse_args()
    first = weights_of(shapes_of(args.model))

    def params() -> list[tuple[str, torch.Tensor]]:
        """Each optimizer has weights of its own, a little off the anchor after the first step."""
        return [(str(i), p) for i, p in enumerate(copies(first))]

    candidates, name = (of_eight_bits, "bases") if args.eight_bits else (of_family, "family")
    with tempfile.TemporaryDirectory() as folder:
        found = of_steps(args.model, candidates(params, folder), args.rounds, first, {"ratio": "AdamW(fused)"})
    write(args.out or RESULTS / f"{name}_cpu.json", {"machine": machine(), "model": args.model, **found})


if __name__ == "__main__":
    main()
