"""Batches without end, from a position that can be saved."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import count
from typing import Any

import torch
from torch import Tensor

from ...calls import callers_level
from ..core.replay import Replay


def is_sequence(batches: Any) -> bool:
    """Whether it can be indexed: a list, a tensor, a data set."""
    return hasattr(batches, "__len__") and hasattr(batches, "__getitem__")


class ResumableLoader:
    """Repeats a sequence, or restarts any other iterable when it ends.

    After a resume, a loader that reads in order, or shuffles with its own ``torch.Generator`` (``loader.generator``, or
    those of its samplers), continues at the same batch: the generators' states at the start of the pass are saved, and
    the batches since then are read again. Any other loader begins a new pass, with a warning.
    """

    def __init__(self, name: str, batches: Any, done: int, saved: dict[str, Tensor]) -> None:
        self._name, self._batches = name, batches
        self._generators = _generators(batches)
        self._began: list[Tensor] | None = None
        self._goes_on, self._position = bool(self._generators) or _reads_in_order(batches), 0
        self._pass: Iterator[Any] = iter(())
        if is_sequence(batches):
            self._goes_on = False  # by the number of steps alone
            self._pass = (batches[i % len(batches)] for i in count(done)) if len(batches) else iter(())
            return
        if f"{name}.position" in saved and self._goes_on:
            replay = Replay()
            replay.run(replay.now(), lambda: self._read_again(saved))
        elif done:
            wanted = "its state holds no position in this loader; pass the same batches as then"
            if not self._goes_on:
                wanted = "pass a list, or a DataLoader that does not shuffle, or one with a generator= of its own"
            warnings.warn(
                f"{name} is read from its beginning: nobody knows where the earlier run was in it; {wanted}",
                UserWarning,
                stacklevel=callers_level(),
            )

    def _read_again(self, saved: dict[str, Tensor]) -> None:
        for i, generator in enumerate(self._generators):
            generator.set_state(saved[f"{self._name}.began.{i}"])
        self._start()
        for _ in range(int(saved[f"{self._name}.position"])):
            self.next()
        for i, generator in enumerate(self._generators):  # others may have drawn from them
            generator.set_state(saved[f"{self._name}.now.{i}"])

    def next(self) -> Any:
        batch = next(self._pass, _END)
        if batch is _END:
            self._start()
            batch = next(self._pass, _END)
        if batch is _END:
            raise ValueError(
                f"{self._name} is empty, or an iterator that can be read only once; pass a list or a loader"
            )
        self._position += 1
        return batch

    def state(self) -> dict[str, Tensor]:
        """What a resumed reader needs beside the number of batches; empty if that is enough, or if it cannot resume."""
        if self._began is None or not self._goes_on:
            return {}
        found = {f"{self._name}.position": torch.tensor(self._position)}
        for i, (generator, began) in enumerate(zip(self._generators, self._began, strict=True)):
            found |= {f"{self._name}.began.{i}": began, f"{self._name}.now.{i}": generator.get_state()}
        return found

    def _start(self) -> None:
        self._began = [generator.get_state() for generator in self._generators]
        self._position = 0
        self._pass = iter(self._batches)


_END = object()


def _reads_in_order(loader: Any) -> bool:
    """Whether a loader gives the batches in the same order in each pass."""
    from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

    batched = getattr(loader, "batch_sampler", None)
    plain = batched is None or type(batched) is BatchSampler
    return isinstance(loader, DataLoader) and plain and isinstance(loader.sampler, SequentialSampler)


def _generators(loader: Any) -> list[torch.Generator]:
    """The generators of a loader, its sampler and its batch samplers, each once."""
    batched = getattr(loader, "batch_sampler", None)
    places = (loader, getattr(loader, "sampler", None), batched, getattr(batched, "sampler", None))
    found = [getattr(place, "generator", None) for place in places]
    return [g for i, g in enumerate(found) if isinstance(g, torch.Generator) and not any(g is x for x in found[:i])]
