"""What all benchmarks share: options, interleaved timing, the rows of steps, and the file with the figures."""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.common.record import processor

RESULTS = Path("benchmarks/results")
MODELS = ("vit_b_16", "resnet50", "swin_t", "segformer_b0")
#: Share of the machine that other processes may use in a round before it is dropped.
FOREIGN = 0.05


def options(about: str | None, out: str | None, **rounds: int) -> argparse.ArgumentParser:
    """``--out`` with its default in the folder of results, and ``--rounds`` with its own."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=out and RESULTS / out, help="the JSON file")
    for name, count in rounds.items():
        parser.add_argument(f"--{name}", type=int, default=count, help=f"timed calls of each (default: {count})")
    return parser


def write(out: Path, record: dict[str, Any]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n")


def published(page: str, name: str, table: str) -> str:
    """The page with the table between the two marks of that benchmark."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    return f"{page.split(begin)[0]}{begin}{table}{end}{page.split(end)[1]}"


def interleaved(
    candidates: dict[str, Callable[[], Any]],
    rounds: int,
    warmup: int = 2,
    quiet: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each call, by name, at most ``rounds`` of them; the order turns round by round, so that drift of the
    machine hits all alike.

    With ``quiet``, rounds in which other processes were busy are dropped, and one in three of ``rounds`` has to remain.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    for k in range(warmup + rounds):
        others, times = Others(), {}
        for name in names[k % len(names) :] + names[: k % len(names)]:
            begin = clock()
            candidates[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[name] = clock() - begin
        if k >= warmup and not (quiet and others.share() > FOREIGN):
            for name, value in times.items():
                seconds[name].append(value)
    kept = len(seconds[names[0]])
    if 3 * kept < rounds:
        raise RuntimeError(f"only {kept} of {rounds} rounds were without other load; run this on an idle machine")
    return seconds


class Others:
    """Share of all cores that other processes use since it was made; 0 where the system does not tell."""

    def __init__(self) -> None:
        self.busy, self.own, self.begin = _busy(), sum(os.times()[:2]), time.perf_counter()

    def share(self, children: float = 0.0) -> float:
        """``children``: seconds that processes worked meanwhile which count as own."""
        wall = time.perf_counter() - self.begin
        others = (_busy() - self.busy) - (sum(os.times()[:2]) - self.own) - children
        return max(0.0, others) / wall / (os.cpu_count() or 1)


def _busy() -> float:
    """Seconds that all cores have worked since the start of the machine."""
    try:
        with open("/proc/stat") as lines:
            user, nice, system, _, _, irq, soft, steal, *_ = (int(x) for x in next(lines).split()[1:])
    except OSError:
        return 0.0
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def ratio(seconds: dict[str, list[float]], name: str, to: str) -> float:
    """Ratio of medians."""
    return statistics.median(seconds[name]) / statistics.median(seconds[to])


def allocated(action: Callable[[], Any]) -> tuple[int, Any]:
    """The most bytes that the CPU's allocator had given out at once during an action, and what that returned."""
    gc.collect()  # what is freed in between, of what was there before, would be subtracted
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        found = action()
    kineto: Any = profile.profiler
    events = [event for event in kineto.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak, found


def weights_of(shapes: Sequence[Sequence[int]], device: str = "cpu") -> list[Tensor]:
    """Random weights with gradients."""
    torch.manual_seed(0)
    params: list[Tensor] = [torch.nn.Parameter(torch.randn(tuple(shape), device=device) * 0.02) for shape in shapes]
    for p in params:
        p.grad = torch.randn_like(p) * 1e-3
    return params


def copies(params: list[Tensor]) -> list[Tensor]:
    """Parameters of the same values, with the same gradients."""
    found: list[Tensor] = [torch.nn.Parameter(p.detach().clone()) for p in params]
    for new, old in zip(found, params, strict=True):
        new.grad = old.grad
    return found


def of_steps(
    what: str, optimizers: dict[str, Any], rounds: int, params: list[Tensor], ratios: dict[str, str]
) -> dict[str, Any]:
    """Each optimizer's steps in rounds without other load: medians, execution, state, and ``ratios`` by their names.

    Args:
        what: is printed above them.
        optimizers: by name, over weights as ``params`` are.
        rounds: as in :func:`interleaved`.
        params: of one of the optimizers.
        ratios: by key, the optimizer to which each is compared; the first one is printed.
    """
    count = sum(p.numel() for p in params)
    seconds = interleaved({name: opt.step for name, opt in optimizers.items()}, rounds, quiet=True)
    rows = {}
    print(f"{what}, {count:,} weights")
    for name, opt in optimizers.items():
        states = getattr(opt, "state", {}).values()
        unique = {t.data_ptr(): t.numel() * t.element_size() for state in states for t in tensors(state)}
        rows[name] = row = {
            "median_ms": 1e3 * statistics.median(seconds[name]),
            "state_bytes_per_weight": sum(unique.values()) / count,
            "execution": getattr(opt, "execution", None),
            **{key: ratio(seconds, name, to) for key, to in ratios.items()},
        }
        key, to = next(iter(ratios.items()))
        about = f"{row[key]:6.2f} x {to}   {row['state_bytes_per_weight']:5.2f} bytes of state a weight"
        print(f"  {name:28} {row['median_ms']:9.2f} ms   {about}")
    return {"parameters": count, "tensors": len(params), "rounds": len(next(iter(seconds.values()))), "steps": rows}


def tensors(value: Any) -> Iterator[Tensor]:
    """Of a state, those inside a tensor that is kept in 8 bits for the tensor."""
    if isinstance(value, Tensor):
        inside = getattr(value, "__tensor_flatten__", lambda: ([], None))()[0]
        yield from (getattr(value, name) for name in inside) if inside else (value,)
    elif isinstance(value, dict):
        for one in value.values():
            yield from tensors(one)


def in_threads(record: dict[str, Any]) -> str:
    return "1 thread" if record["threads"] == 1 else f"{record['threads']} threads"


def shapes_of(model: str) -> list[torch.Size]:
    """Of the parameters of one of MODELS, which is made without weights."""
    with torch.device("meta"):
        if model == "segformer_b0":
            from transformers import SegformerConfig, SegformerForSemanticSegmentation

            net: Any = SegformerForSemanticSegmentation(SegformerConfig.from_dict({"num_labels": 150}))
        else:
            import torchvision

            net = getattr(torchvision.models, model)()
    return [p.shape for p in net.parameters()]


def machine() -> dict[str, Any]:
    """What a figure needs beside it: hardware, versions and the day."""
    return {
        "cpu": processor(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": date.today().isoformat(),
    }
