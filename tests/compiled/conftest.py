"""Each test begins without a program of another, and may ask which programs have run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from hyperopt_ftp.hyper.compiled import scan as scan_module
from hyperopt_ftp.hyper.compiled.programs import Program, program


def pytest_itemcollected(item: pytest.Item) -> None:
    item.add_marker(pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated"))  # torch's own


@pytest.fixture(autouse=True)
def programs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The programs that have run, by name."""
    program.cache_clear()
    run, ran = Program.run, []

    def counted(self: Any, *given: Any, **options: Any) -> Any:
        ran.append(self._function.__name__)
        return run(self, *given, **options)

    monkeypatch.setattr(Program, "run", counted)
    yield ran
    torch._dynamo.reset()


@pytest.fixture
def scan() -> Any:
    """The one file that names a part of torch which is not public."""
    return scan_module
