"""Peak memory of a piece of work, in MiB."""

import ctypes
import gc
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import torch

Result = TypeVar("Result")

_CLEAR = Path("/proc/self/clear_refs")


def reset_peak(device: torch.device) -> None:
    """Forget the peak so far, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR.exists():
        with suppress(OSError):  # some sandboxes forbid it
            _CLEAR.write_text("5")  # Linux: the high-water mark of the process becomes what it holds now


def peak(device: torch.device) -> float:
    """Of the allocator on CUDA; elsewhere of the whole process, data and libraries included; 0 where not known."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        try:
            import resource
        except ModuleNotFoundError:  # Windows
            return 0.0
        kilo = 1024 if sys.platform == "darwin" else 1
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 / kilo


def peak_above(device: torch.device, work: Callable[[], Result]) -> tuple[Result, float]:
    """What `work` returns, and by how many MiB memory rose above what was held before it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)  # freed memory would hide what is taken from it
    reset_peak(device)
    held = peak(device)
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, max(0.0, peak(device) - held)


def costing(device: torch.device, work: Callable[[], Result]) -> tuple[Result, dict[str, float]]:
    """What `work` returns, and what it took: seconds of the processor, which others on it do not lengthen, and MiB."""

    def timed() -> tuple[Result, float]:
        begin = time.process_time()
        return work(), time.process_time() - begin

    (result, seconds), mib = peak_above(device, timed)
    return result, {"seconds": round(seconds, 3), "mib": round(mib)}
