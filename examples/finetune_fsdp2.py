"""Fine-tuning in many processes, with FSDP2 and checkpoints that any number of processes can go on from.

    torchrun --standalone --nproc-per-node 2 -m examples.finetune_fsdp2 --out runs/fsdp2

Kill it and run it again, with another number if you like: it goes on from the last whole checkpoint. With
`--max-restarts 3` torchrun does that itself when a process dies. The network knows all ten digits and is fine-tuned on
noisy pictures of five of them; at the end it prints how well it still knows the others.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

import hyperopt_ftp as hft

from .digits import Batch, digits

BATCH = 96  # over all processes, so that their number changes nothing


def batch_at(data: Batch, step: int, seed: int) -> Batch:
    """The same for a step whenever it is made: a run that resumes needs no state of its data."""
    chosen = torch.randint(len(data[1]), (BATCH,), generator=torch.Generator().manual_seed(seed * 100_000 + step))
    return data[0][chosen], data[1][chosen]


def pretrained(data: Batch) -> nn.Module:
    """Trained here, by every process alike; in a real run it comes from a file."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 30), nn.Tanh(), nn.Linear(30, 10)).double()
    opt = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(100):
        x, y = batch_at(data, step, seed=1)
        opt.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        opt.step()
    return model


def newest(folder: Path) -> int:
    """The step of the last whole checkpoint: the file `.metadata` is written last. 0 where there is none."""
    steps = [int(file.parent.name.removeprefix("step-")) for file in folder.glob("step-*/.metadata")]
    return max(steps, default=0)


def state_of(model: nn.Module, opt: torch.optim.Optimizer) -> dict[str, Any]:
    weights, state = get_state_dict(model, opt)
    return {"model": weights, "optimizer": state}


@torch.no_grad()
def accuracy(model: nn.Module, data: Batch) -> float:
    return 100 * (model(data[0]).argmax(1) == data[1]).double().mean().item()


def fine_tune(out: Path, steps: int, every: int, on_step: Callable[[int], None] = lambda step: None) -> None:
    """Go on from the newest checkpoint in ``out``. A test interrupts through ``on_step``."""
    rank, processes = dist.get_rank(), dist.get_world_size()
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    if BATCH % processes:
        raise SystemExit(f"{processes} processes cannot share batches of {BATCH} evenly; choose another number")
    train, held_out = digits()
    model = pretrained(train).to(device)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    few = train[0][train[1] < 5], train[1][train[1] < 5]

    def say(text: str) -> None:
        if rank == 0:
            print(text, flush=True)

    def report(name: str) -> None:
        shown = [held_out[1] < 5, held_out[1] >= 5]
        known, rest = ((held_out[0][keep].to(device), held_out[1][keep].to(device)) for keep in shown)
        # All processes take part: the weights are gathered layer by layer.
        say(f"{name:>12} {accuracy(model, known):12.1f} {accuracy(model, rest):12.1f}")

    say(f"{'accuracy %':>12} {'fine-tuned':>12} {'the rest':>12}")
    report("anchor")
    fully_shard(model)
    # The anchor is in a file or, as here, easily made again: checkpoints hold its fingerprint alone.
    opt = hft.FTPAdamW(model.named_parameters(), lr=5e-3, anchor=weights, save_anchor=False)
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: 1 / (1 + step / 100))

    first = [newest(out)]
    dist.broadcast_object_list(first)  # all see the same folder at the same time, or do as process 0 does
    done = first[0]
    if done:
        state = state_of(model, opt)
        position = {"schedule": schedule.state_dict()}
        dcp.load(state | position, checkpoint_id=out / f"step-{done}")
        set_state_dict(model, opt, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        schedule.load_state_dict(position["schedule"])
        say(f"going on from step {done}")

    share = BATCH // processes
    for step in range(done, steps):
        x, y = batch_at(few, step, seed=2)
        x = x + 0.4 * torch.randn(x.shape, generator=torch.Generator().manual_seed(step), dtype=x.dtype)
        x, y = (part[rank * share : (rank + 1) * share].to(device) for part in (x, y))
        opt.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        opt.step()
        schedule.step()
        if (step + 1) % every == 0 or step + 1 == steps:
            state = state_of(model, opt) | {"schedule": schedule.state_dict()}
            dcp.save(state, checkpoint_id=out / f"step-{step + 1}")
        on_step(step + 1)
    report("fine-tuned")
    say("radii: " + ", ".join(f"{name} {radius:.3f}" for name, radius in opt.radii().items()))


def connect() -> None:
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # Restarted processes find the store of those that died, and would call their addresses.
    store, rank, processes = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=processes)


def main(on_step: Callable[[int], None] = lambda step: None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/fsdp2"), help="folder of the checkpoints")
    parser.add_argument("--steps", type=int, default=120, help="steps in all (default: 120)")
    parser.add_argument("--every", type=int, default=20, help="steps between two checkpoints (default: 20)")
    args = parser.parse_args()
    if "RANK" not in os.environ:
        raise SystemExit("run it by torchrun: torchrun --standalone --nproc-per-node 2 -m examples.finetune_fsdp2")
    connect()
    try:
        fine_tune(args.out, args.steps, args.every, on_step)
    finally:
        dist.destroy_process_group()
    # Leave without Python's shutdown. What DTensor caches keeps gloo's threads alive, also without the group, and one
    # that only then lets go of the tensors of the last collective would abort the process.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
