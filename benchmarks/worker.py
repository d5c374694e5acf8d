"""A contender in a process of its own, which answers in lines of JSON."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch


class Worker:
    """``python -m MODULE WORDS`` with the same number of threads for torch, and more of an environment."""

    def __init__(self, module: str, *words: str, threads: int, **environment: str) -> None:
        self.what = f"{module} {' '.join(words)}"
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # as long as the process
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), **environment},
        )

    def answer(self) -> Any:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        status = self.process.wait()
        self.errors.seek(0)
        raise RuntimeError(f"{self.what} ended with {status}:\n{self.errors.read()[-3000:]}")

    def ask(self, what: str) -> Any:
        assert self.process.stdin
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return self.answer()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()  # closes stdin, where it stops reading
        self.errors.close()


@contextlib.contextmanager
def answering() -> Iterator[Callable[[Any], None]]:
    """In the worker: what says an answer. What libraries print is none, and their warnings are their own."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    with contextlib.redirect_stdout(sys.stderr):
        yield lambda answer: print(json.dumps(answer), file=answers)
