"""Hypergradients in many processes: 40 % of the labels are wrong, and a weight for each example finds them.

    torchrun --standalone --nproc-per-node 2 -m examples.tune_data_parallel --out runs/weights

Each process has its share of every batch, and `hft.data_parallel` turns its losses into those on whole batches. No
other line is for many processes. The weights of 800 examples and the learning rate are tuned on 200 clean ones. Kill
it and run it again, with another number of processes if you like: it goes on from the last round that was saved.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

import hyperopt_ftp as hft

from .digits import Params, accuracy, digits, logits, network
from .finetune_fsdp2 import connect

EXAMPLES, CLEAN, BATCH, INNER = 800, 200, 100, 5
Batch = tuple[Tensor, Tensor, Tensor]  # pictures, labels, numbers of the examples


def weighted(p: Params, batch: Batch, own: dict[str, Tensor]) -> Tensor:
    x, y, index = batch
    return (F.cross_entropy(logits(p, x), y, reduction="none") * torch.sigmoid(own["weight"][index])).mean()


def plain(p: Params, batch: Batch) -> Tensor:
    return F.cross_entropy(logits(p, batch[0]), batch[1])


class Shards(Sequence[Any]):
    """This process's share of batches that depend on their number alone, however many processes there are."""

    def __init__(self, data: Batch, seed: int) -> None:
        self._data, self._seed = data, seed

    def __len__(self) -> int:
        return 10_000

    def __getitem__(self, k: Any) -> Any:
        g = torch.Generator().manual_seed(self._seed * len(self) + k)
        chosen = torch.randint(len(self._data[1]), (BATCH,), generator=g)
        mine = chosen[dist.get_rank() :: dist.get_world_size()]  # shards need not be of one size
        return self._data[0][mine], self._data[1][mine], self._data[2][mine]


def noisy_digits() -> tuple[Batch, Batch, tuple[Tensor, Tensor], Tensor]:
    """Examples of which some labels are wrong, clean ones, those to test on, and which labels are wrong."""
    (x, y), test = digits()
    g = torch.Generator().manual_seed(1)
    order = torch.randperm(len(y), generator=g)
    x, y = x[order], y[order]
    wrong = torch.rand(EXAMPLES, generator=g) < 0.4
    other = (y[:EXAMPLES] + torch.randint(1, 10, (EXAMPLES,), generator=g)) % 10
    index = torch.arange(EXAMPLES)
    clean = slice(EXAMPLES, EXAMPLES + CLEAN)
    return (
        (x[:EXAMPLES], torch.where(wrong, other, y[:EXAMPLES]), index),
        (x[clean], y[clean], index[:CLEAN]),
        test,
        wrong,
    )


def tune(out: Path, rounds: int, every: int) -> None:
    """Go on from what was saved in ``out``."""
    noisy, clean, test, wrong = noisy_digits()
    optimizer = hft.adam(lr=1e-3)
    start = {"loss": {"weight": torch.zeros(EXAMPLES, dtype=torch.float64)}}

    def run(until: int, state: Any = None) -> Any:
        return hft.bilevel(
            optimizer, hft.adam(lr=0.1), ("lr", "loss.weight"), hft.data_parallel(weighted), hft.data_parallel(plain),
            network(), Shards(noisy, 2), Shards(clean, 3), inner_steps=INNER, outer_steps=until, hparams=start,
            state=state, constrain={"lr": "log"},
        )  # fmt: skip

    def say(text: str) -> None:
        if dist.get_rank() == 0:
            print(text, flush=True)

    file, state = out / "rounds.pt", None
    first = [file.exists()]
    dist.broadcast_object_list(first)  # all do as process 0 does
    if first[0]:
        state = torch.load(file, weights_only=True)
        say(f"going on from round {int(state.step)}")
    say(f"{'round':>5} {'outer loss':>10} {'lr':>8} {'weight: right':>13} {'wrong':>6} {'test %':>7}")
    for record in run(rounds, state):
        if record.step % every == 0 or record.step == rounds:
            if dist.get_rank() == 0:
                out.mkdir(parents=True, exist_ok=True)
                torch.save(record.state, file.with_suffix(".new"))
                os.replace(file.with_suffix(".new"), file)  # whole, or not there
            weight = torch.sigmoid(record.tuned["loss.weight"])
            right, noise = weight[~wrong].mean().item(), weight[wrong].mean().item()
            say(
                f"{record.step:>5} {record.value:>10.4f} {record.tuned['lr'].item():>8.5f} {right:>13.2f} {noise:>6.2f}"
                f" {accuracy(record.state.params, test):>7.1f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/weights"), help="folder of what is saved")
    parser.add_argument("--rounds", type=int, default=100, help=f"rounds of {INNER} steps in all (default: 100)")
    parser.add_argument("--every", type=int, default=20, help="rounds between two that are saved (default: 20)")
    args = parser.parse_args()
    if "RANK" not in os.environ:
        raise SystemExit("run it by torchrun: torchrun --standalone --nproc-per-node 2 -m examples.tune_data_parallel")
    connect()
    try:
        tune(args.out, args.rounds, args.every)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
