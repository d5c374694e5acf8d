"""Each test begins without a program of another, and may ask which programs have run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from hyperopt_ftp.hyper.unrolling import scan as scan_module
from hyperopt_ftp.hyper.unrolling.compiled import CompiledSteps
from hyperopt_ftp.hyper.unrolling.programs import program


def pytest_itemcollected(item: pytest.Item) -> None:
    item.add_marker(pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated"))  # torch's own


@pytest.fixture(autouse=True)
def programs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The programs that have run, by name."""
    program.cache_clear()
    ran: list[str] = []
    for name in ("_run", "_back", "along"):
        monkeypatch.setattr(CompiledSteps, name, spy(getattr(CompiledSteps, name), name, ran))
    yield ran
    torch._dynamo.reset()


def spy(run: Any, name: str, ran: list[str]) -> Any:
    def wrapped(*given: Any) -> Any:
        ran.append(name)
        return run(*given)

    return wrapped


@pytest.fixture
def scan() -> Any:
    """The one file that names a part of torch which is not public."""
    return scan_module
