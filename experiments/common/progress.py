"""Progress bars in the terminal: what is running, how far it is, the current loss, the time left."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars


class Task:
    """One bar. `advance` may carry a note such as the loss."""

    def __init__(self, bars: Bars, task: TaskID) -> None:
        self._bars = bars
        self._task = task

    def advance(self, note: str = "", steps: int = 1) -> None:
        self._bars.update(self._task, advance=steps, note=note)


class Progress:
    """A group of bars, used as a context manager. Where the output is no terminal, one line per finished task."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bars = Bars(
            TextColumn("{task.description:<22}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]:<24}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> "Progress":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    @contextmanager
    def task(self, description: str, total: int, done: int = 0) -> Iterator[Task]:
        start = time.perf_counter()
        task = self._bars.add_task(description, total=total, completed=done, note="")
        try:
            yield Task(self._bars, task)
        finally:
            self._bars.stop_task(task)
        if not self.console.is_terminal:
            self.console.print(f"{description}: done in {time.perf_counter() - start:.1f} s")
