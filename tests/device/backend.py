"""The device "sim", an accelerator on the CPU's memory: built in C++ at its first import, and kept."""

import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.utils.cpp_extension import load

HERE = Path(__file__).parent
PACKAGE = f"{HERE.parents[1] / 'hyperopt_ftp'}/"


def _build() -> ModuleType:
    if shutil.which("c++") is None:
        pytest.skip("there is no C++ compiler to build the device with", allow_module_level=True)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where ninja is installed
    folder = HERE / "__pycache__" / f"sim-{torch.__version__}"
    folder.mkdir(parents=True, exist_ok=True)
    return load("sim", [str(HERE / "backend.cpp")], build_directory=str(folder), extra_cflags=["-O1", "-g0"])


def _module() -> ModuleType:
    """What ``torch.sim`` has, as ``torch.cuda`` has it."""
    module, generator = ModuleType("torch.sim"), _native.generator()

    class device:  # a context manager, as torch.cuda.device
        def __init__(self, index: object = None) -> None:
            pass

        def __enter__(self) -> None:
            pass

        def __exit__(self, *error: object) -> None:
            pass

    has = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda index: None,
        "synchronize": lambda index=None: torch.accelerator.synchronize(),
        "get_amp_supported_dtype": lambda: [torch.float16, torch.bfloat16],
        "get_rng_state": lambda index=0: generator.get_state(),
        "set_rng_state": lambda state, index=0: generator.set_state(state),
        "manual_seed": generator.manual_seed,
        "manual_seed_all": generator.manual_seed,
        "default_generators": (generator,),
        "device": device,
        "_is_in_bad_fork": lambda: False,
        "_initialized": True,
    }
    vars(module).update(has)
    return module


_native = _build()
torch.utils.rename_privateuse1_backend("sim")
torch._register_device_module("sim", _module())
torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)

#: Those who are told of each wait.
_counters: list[Counter[str]] = []


def _where() -> str:
    """The line of the package that runs."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename.startswith(PACKAGE):
            return f"{frame.f_code.co_filename.removeprefix(PACKAGE)}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


def _heard(what: str) -> None:
    for counter in _counters:
        counter[f"{what} at {_where()}"] += 1


_native.listen(_heard)


@contextmanager
def waits() -> Iterator[Counter[str]]:
    """How often the host waits for the device, or copies to it, inside; by what, and the line of the package."""
    counter: Counter[str] = Counter()
    _counters.append(counter)
    try:
        yield counter
    finally:
        _counters.remove(counter)
