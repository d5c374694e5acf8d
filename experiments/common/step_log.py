"""What was measured at each step: a CSV file for every training."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from experiments.common import checkpoint
from experiments.common.loop import STEP


def write_steps(file: Path, log: Sequence[Sequence[float]]) -> None:
    """Columns: step, loss, share of the batch that was right (nan: not known), lr, seconds."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(STEP)
    rows.writerows([int(step), *(f"{value:.6g}" for value in values)] for step, *values in log)
    checkpoint.write_text(file, text.getvalue())
