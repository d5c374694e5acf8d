"""What tests of studies share: one thread, and one folder in which the emoji are drawn once."""

from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from experiments.classification.data import Pictures
from experiments.classification.emoji import emoji_pictures
from experiments.common.progress import Progress


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    """On pictures this few, threads that wait for each other on a busy machine cost more than they bring."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def emoji_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the emoji in its runs/cache."""
    folder = tmp_path_factory.mktemp("classification")
    with Progress(Console(file=StringIO())) as progress:
        emoji_pictures(folder / "runs" / "cache", progress)
    return folder


@pytest.fixture
def cache(emoji_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder is the current one, too."""
    monkeypatch.chdir(emoji_folder)
    return emoji_folder / "runs" / "cache"


@pytest.fixture(scope="session")
def emoji(emoji_folder: Path) -> Pictures:
    with Progress(Console(file=StringIO())) as progress:
        return emoji_pictures(emoji_folder / "runs" / "cache", progress)


@pytest.fixture
def quiet() -> Progress:
    return Progress(Console(file=StringIO()))
