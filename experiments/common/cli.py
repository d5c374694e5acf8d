"""How the command of a study begins and ends: on which device, and with which exit status."""

from collections.abc import Callable

import torch
from rich.console import Console

from experiments.common.errors import InputError


def find_device(name: str) -> str:
    """Refuse a device that torch does not know or this machine does not have."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {name} cannot be used here ({reason}); try cpu, cuda, mps or auto") from error
    return name


def guarded(work: Callable[[], None]) -> int:
    """Returns the exit status: 0, 2 for unusable options or data, 130 after Ctrl-C."""
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        work()
    except (InputError, OSError) as error:
        errors.print(f"error: {error}", style="red", markup=False)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not _lacks_memory(error):
            raise
        errors.print("error: there is not enough memory for a run of this size; give smaller numbers", style="red")
        return 2
    except KeyboardInterrupt:
        errors.print("Stopped. What is finished is kept: run the same command again to go on.")
        return 130
    return 0


def _lacks_memory(error: Exception) -> bool:
    """Torch has a class of its own for a GPU's memory alone."""
    texts = ("can't allocate memory", "Storage size calculation overflowed")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(text in str(error) for text in texts)
