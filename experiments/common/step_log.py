"""What was measured at each step: a CSV file for every training, and TensorBoard on request."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from experiments.common import checkpoint
from experiments.common.errors import InputError
from experiments.common.loop import STEP


def write_steps(file: Path, log: Sequence[Sequence[float]]) -> None:
    """Columns: step, loss, share of the batch that was right (nan: not known), lr, seconds."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(STEP)
    rows.writerows([int(step), *(f"{value:.6g}" for value in values)] for step, *values in log)
    checkpoint.write_text(file, text.getvalue())


class Board:
    """TensorBoard's event files, one folder for each training; without a folder nothing is written."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._writers = {}
        if folder is not None:
            try:
                import torch.utils.tensorboard as board
            except ModuleNotFoundError as error:
                raise InputError("--tensorboard needs the package tensorboard: pip install tensorboard") from error
            self._board = board

    def __enter__(self) -> "Board":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for writer in self._writers.values():
            writer.close()

    def add(self, training: str, step: int, values: dict[str, float]) -> None:
        if self._folder is None:
            return
        if training not in self._writers:
            self._writers[training] = self._board.SummaryWriter(str(self._folder / training))
        for name, value in values.items():
            if name != "step":
                self._writers[training].add_scalar(name, value, step)
