"""A tiny setting of the main job, drawn and trained once for all tests here."""

from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from experiments.classification.study import main
from experiments.common.progress import Progress

from .running import CONVOLUTIONAL

# 48 emoji: 16 for each part, so 2 steps in an epoch of fine-tuning and 2 in one of the anchor.
TINY = ["--limit", "48", "--batch-size", "8", "--epochs", "1", "--anchor-epochs", "1", "--seeds", "0"]


@dataclass
class Outcome:
    status: int
    text: str
    trainings: list[str]


@dataclass
class Workplace:
    """A current directory of its own; what is drawn and the anchor stay in its runs/cache."""

    folder: Path

    def command(self, *arguments: str, interrupt: tuple[str, int] | None = None) -> Outcome:
        """Run the command; `interrupt` names the training and the step after which Ctrl-C arrives."""
        trainings: list[str] = []

        def on_step(name: str, step: int) -> None:
            if name not in trainings:
                trainings.append(name)
            if (name, step) == interrupt:
                raise KeyboardInterrupt

        text = StringIO()
        console = Console(file=text, width=120)
        status = main([*TINY, "--device", "cpu", *arguments], console=console, on_step=on_step)
        return Outcome(status, text.getvalue(), trainings)


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    """On pictures this few, threads that wait for each other on a busy machine cost more than they bring."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("classification")


@pytest.fixture
def workplace(shared_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    monkeypatch.chdir(shared_folder)
    return Workplace(shared_folder)


@pytest.fixture(scope="session")
def finished(shared_folder: Path) -> Path:
    """The folder of a whole, undisturbed run of two epochs with every method."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(shared_folder)
        assert Workplace(shared_folder).command("--epochs", "2", "--out", "runs/finished").status == 0
    return shared_folder / "runs" / "finished"


@pytest.fixture(scope="session")
def everything(shared_folder: Path) -> Path:
    """The folder of a run of one epoch with every method there is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(shared_folder)
        done = Workplace(shared_folder).command("--method", *CONVOLUTIONAL, "--out", "runs/everything")
        assert done.status == 0
        (shared_folder / "runs" / "everything.txt").write_text(done.text)
    return shared_folder / "runs" / "everything"


@pytest.fixture(scope="session")
def cache(shared_folder: Path) -> Path:
    return shared_folder / "runs" / "cache"


@pytest.fixture
def quiet() -> Progress:
    return Progress(Console(file=StringIO()))
