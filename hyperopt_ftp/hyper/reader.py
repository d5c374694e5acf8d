"""Batches one after the other, without end, from a place that can be saved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Reader"]


class Reader:
    """Reads a sequence round and round; any other iterable is started anew when it ends.

    A loader that shuffles by a ``torch.Generator`` of its own (``loader.generator``, or that of its sampler) goes on
    after a resume where it was: the state of the generator when the pass began is saved, and the batches since then
    are read again.
    """

    def __init__(self, name: str, batches: Iterable[Any], done: int, saved: dict[str, Tensor]) -> None:
        self._name, self._batches, self._done = name, batches, done
        self._generator = None if isinstance(batches, Sequence) else _generator(batches)
        self._began: Tensor | None = None
        self._position = 0
        self._pass: Iterator[Any] = iter(())
        if self._generator is not None and f"{name}.generator" in saved:
            self._generator.set_state(saved[f"{name}.generator"])
            self._start()
            for _ in range(int(saved[f"{name}.position"])):
                self.next()

    def next(self) -> Any:
        if isinstance(self._batches, Sequence):
            if not self._batches:
                raise self._empty()
            self._done += 1
            return self._batches[(self._done - 1) % len(self._batches)]
        batch = next(self._pass, _END)
        if batch is _END:
            self._start()
            batch = next(self._pass, _END)
        if batch is _END:
            raise self._empty()
        self._position += 1
        return batch

    def state(self) -> dict[str, Tensor]:
        """What a resumed reader needs; nothing where the number of batches says it all, or where nothing can."""
        if self._began is None:
            return {}
        return {f"{self._name}.generator": self._began, f"{self._name}.position": torch.tensor(self._position)}

    def _start(self) -> None:
        self._began = None if self._generator is None else self._generator.get_state()
        self._position = 0
        self._pass = iter(self._batches)

    def _empty(self) -> ValueError:
        return ValueError(f"{self._name} is empty, or an iterator that can be read only once; pass a list or a loader")


_END = object()


def _generator(loader: Any) -> torch.Generator | None:
    found = (getattr(x, "generator", None) for x in (loader, getattr(loader, "sampler", None)))
    return next((g for g in found if isinstance(g, torch.Generator)), None)
