"""Wrong arguments as a table: what was done, the error, its exact text. ``python -m tests.torch_optim.bad_inputs``
writes it to docs/reference/errors.md.

The rows are in ``bad_inputs_built.py`` (constructors), ``bad_inputs_used.py`` (steps and groups) and
``bad_inputs_loaded.py`` (checkpoints).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import hyperopt_ftp as hft

from ..support.compare import kept

DOCS = Path(__file__).parents[2] / "docs/reference/errors.md"

ADAMW, SGD, FTP = "FTPAdamW", "FTPSGD", "FTP"
ALL, NATIVE = (ADAMW, SGD, FTP), (ADAMW, SGD)
FTP_OPTIONS = inspect.signature(hft.FTP).parameters.keys() - {"base"}


class Row(NamedTuple):
    """One wrong thing to do."""

    error: type[Exception]
    text: str
    done: str  # in the words of the table
    act: Callable[[Scene], Any]  # does it
    who: tuple[str, ...] = ALL  # classes that it concerns
    begin: Callable[[Scene], torch.optim.Optimizer] | None = None  # makes the optimizer that there is already
    torch: bool = False  # torch's (or Python's) own error: the text may go on, and vary with the version


def unfit(text: str, done: str = "", act: Any = None, who: tuple[str, ...] = ALL, **rest: Any) -> Row:
    """A ValueError: of an act, or of an optimizer that is built with an option."""
    return _row(ValueError, text, done, act, who, rest)


def mistyped(text: str, done: str = "", act: Any = None, who: tuple[str, ...] = ALL, **rest: Any) -> Row:
    """A TypeError, likewise."""
    return _row(TypeError, text, done, act, who, rest)


def refused(text: str, done: str = "", act: Any = None, who: tuple[str, ...] = ALL, **rest: Any) -> Row:
    """A RuntimeError, likewise."""
    return _row(RuntimeError, text, done, act, who, rest)


def _row(error: type[Exception], text: str, done: str, act: Any, who: tuple[str, ...], rest: dict[str, Any]) -> Row:
    fields = {name: rest.pop(name) for name in ("begin", "torch") if name in rest}
    if rest:
        done = f"`{', '.join(f'{name}={value!r}' for name, value in rest.items())}`"
    return Row(error, text, done, act or (lambda s: s.build(**rest)), who, **fields)


class Scene:
    """A small model, one of the classes, and the optimizer that a row begins with."""

    def __init__(self, who: str) -> None:
        torch.manual_seed(0)
        self.who = who
        self.net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
        self.opt: Any = None
        self.watched: list[tuple[torch.optim.Optimizer, Any]] = []

    def make(self, params: Any, **options: Any) -> Any:
        """An optimizer of the class; FTP goes around SGD. Compiles nothing unless the row asks for it."""
        if "fused" not in options:
            options = {"foreach": True} | options
        if self.who != FTP:
            return getattr(hft, self.who)(params, **({"lr": 0.1} | options))
        rest = {name: value for name, value in options.items() if name not in FTP_OPTIONS}
        base = torch.optim.SGD(params, **({"lr": 0.1} | rest))
        self.watch(base)
        return hft.FTP(base, **{name: value for name, value in options.items() if name in FTP_OPTIONS})

    def build(self, **options: Any) -> Any:
        return self.make(self.net.named_parameters(), **options)

    def weights(self) -> dict[str, torch.Tensor]:
        return {n: p.detach().clone() for n, p in self.net.named_parameters()}

    def begun(self, **options: Any) -> Any:
        """An optimizer of the model that has made two steps; the gradients of a third one are there."""
        opt = self.build(**options)
        for _ in range(2):
            self.gradients()
            opt.step()
        self.gradients()
        return opt

    def gradients(self) -> None:
        for p in self.net.parameters():
            p.grad = torch.randn_like(p)

    def watch(self, opt: torch.optim.Optimizer) -> None:
        self.watched.append((opt, kept(opt)))


def step(scene: Scene) -> None:
    scene.opt.step()


def tracked(value: float | list[float]) -> Tensor:
    return torch.tensor(value, requires_grad=True)


def no_gradient(name: str, who: str) -> str:
    return (
        f"{name} requires a gradient, but a step of {who} has no derivative: pass it detached, or train with a pure "
        "optimizer by hft.train, through which backward() goes"
    )


def tables() -> dict[str, list[Row]]:
    """The rows by topic."""
    from . import bad_inputs_built, bad_inputs_loaded, bad_inputs_used

    return {**bad_inputs_built.TABLES, **bad_inputs_used.TABLES, **bad_inputs_loaded.TABLES}


HEAD = """\
# Errors

For those who search for the cause of an error of a drop-in class. An error leaves weights, state and groups as they
were.

Each row is an example, on a model `Sequential(Linear(3, 4), Linear(4, 2))`, of texts that differ only in names, numbers
and what was given; `...` stands for more names. Without a class in brackets a row holds for `FTPAdamW`, `FTPSGD` and
`FTP(base)`. Rows marked (torch) quote a part of torch's or Python's own text, which may vary with the version.

```python
import torch
import hyperopt_ftp as hft

model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
try:
    hft.FTPAdamW(model.named_parameters(), exclude="1")
except ValueError as error:
    print(error)  # exclude: ['1'] match no parameter; ...; did you mean '1.*'?
```

`python -m tests.torch_optim.bad_inputs` writes this page; a test makes each of these errors.
"""

FOOT = "Next: [the classes](classes.md), [gotchas](../gotchas.md).\n"

#: Names in a row, of which the page shows two.
NAMES = re.compile(r"((?:'[^']*', ){2})(?:'[^']*', )*'[^']*'(?: and \d+ more)?|(arguments are \w+, \w+, )[\w, ]+")
#: What differs between texts of one form: a class, quoted names, a number, the argument at the beginning.
VARIES = re.compile(r"FTPAdamW|FTPSGD|FTP|'[^']*'(, '[^']*')*(, \.\.\.)?|-?\d+(\.\d+)?|^\w+(?= (must|requires))")


def document() -> str:
    parts, shown = [HEAD], set()
    for topic, rows in tables().items():
        parts.append(f"## {topic}\n\n| What was done | Error | Text |\n|---|---|---|")
        for row in rows:
            text = NAMES.sub(lambda found: f"{found[1] or found[2]}...", row.text)
            form = VARIES.sub("", text.partition(", got ")[0])
            if form in shown:
                continue
            shown.add(form)
            whom = "" if row.who == ALL else f" ({', '.join(row.who)})"
            mark = " (torch)" if row.torch else ""
            text = text.replace("|", "\\|")
            parts[-1] += f"\n| {row.done}{whom} | `{row.error.__name__}`{mark} | `{text}` |"
        parts[-1] += "\n"
    return "\n".join([*parts, FOOT])


if __name__ == "__main__":
    from tests.torch_optim import bad_inputs

    bad_inputs.DOCS.write_text(bad_inputs.document())
    print(f"wrote {bad_inputs.DOCS.name}: {sum(map(len, bad_inputs.tables().values()))} rows")
