"""A pure update, and the class that runs it on a model's parameters, against ``torch.optim.Adam(foreach=True)``.

Adam over 200 tensors of 64 numbers, one thread, and over ResNet50's shapes, two threads: ``hft.adam().update`` under
``torch.no_grad``, ``hft.PureOptimizer(params, hft.adam()).step``, and torch's, in turns in one process.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

import hyperopt_ftp as hft

from .measure import Others, interleaved, machine, options, ratio, write
from .shapes import SHAPES

OURS, CLASS = "hft.adam().update", "hft.PureOptimizer(params, hft.adam()).step"
TORCH = "torch.optim.Adam(foreach=True).step"


def candidates(shapes: Sequence[Sequence[int]]) -> dict[str, Callable[[], Any]]:
    """All from the same weights and gradients; each call is one step further."""
    torch.manual_seed(0)
    weights = [torch.randn(tuple(shape)) for shape in shapes]
    grads = {str(k): torch.randn(tuple(shape)) for k, shape in enumerate(shapes)}
    opt = hft.adam(lr=1e-3)
    held: dict[str, Any] = {"params": {str(k): w.clone() for k, w in enumerate(weights)}}
    held["state"] = opt.init(held["params"])

    @torch.no_grad()
    def ours() -> dict[str, torch.Tensor]:
        held["params"], held["state"] = opt.update(grads, held["state"], held["params"])
        return held["params"]

    def stepping(make: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]) -> Callable[[], Any]:
        params = [torch.nn.Parameter(w.clone()) for w in weights]
        for p, g in zip(params, grads.values(), strict=True):
            p.grad = g.clone()
        optimizer = make(params)

        def step() -> dict[str, torch.Tensor]:
            optimizer.step()
            return {str(k): p.detach() for k, p in enumerate(params)}

        return step

    return {
        OURS: ours,
        CLASS: stepping(lambda params: hft.PureOptimizer(params, hft.adam(lr=1e-3))),
        TORCH: stepping(lambda params: torch.optim.Adam(params, lr=1e-3, foreach=True)),
    }


def measured(what: str, shapes: Sequence[Sequence[int]], threads: int, rounds: int) -> dict[str, Any]:
    """Medians and ratios of the candidates on tensors of some shapes, whose results are compared."""
    torch.set_num_threads(threads)
    found, others = candidates(shapes), Others()
    seconds = interleaved(found, rounds, warmup=5)
    share = others.share()
    theirs = found[TORCH]()
    for name in (OURS, CLASS):
        for key, w in found[name]().items():
            eps = torch.finfo(w.dtype).eps  # a step rounds its weight once, and is lr long but for a few roundings
            torch.testing.assert_close(w, theirs[key], rtol=rounds * eps, atol=rounds * eps)
    record = {
        "what": what,
        "threads": threads,
        "rounds": rounds,
        "share_of_other_processes": share,
        "median_ms": {name: 1e3 * statistics.median(times) for name, times in seconds.items()},
        "over_torch": {name: ratio(seconds, name, TORCH) for name in (OURS, CLASS)},
    }
    print(f"{what}, {threads} threads (other processes: {100 * share:.0f} % of the machine)")
    for name, value in record["median_ms"].items():
        of_torch = f"{record['over_torch'][name]:.2f} of torch" if name != TORCH else ""
        print(f"  {name:46} {value:9.3f} ms   {of_torch}")
    return record


def main() -> None:
    args = options(__doc__, "update.json", rounds=101, large=11).parse_args()
    records = [
        measured("200 tensors of 64 numbers", [(64,)] * 200, 1, args.rounds),
        measured("ResNet50", SHAPES["resnet50"](), 2, args.large),
    ]
    write(args.out, {"machine": machine(), "updates": records})


if __name__ == "__main__":
    main()
