"""The budget of a contender: seconds of its own work."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Clock:
    """Runs from the moment it is made; stands still while paused. `now` is what a test drives by hand."""

    def __init__(self, budget: float, now: Callable[[], float] = time.perf_counter) -> None:
        self.budget = budget
        self._now = now
        self._start = now()

    @property
    def seconds(self) -> float:
        return self._now() - self._start

    @property
    def over(self) -> bool:
        return self.seconds > self.budget

    @contextmanager
    def paused(self) -> Iterator[None]:
        stopped = self._now()
        yield
        self._start += self._now() - stopped
