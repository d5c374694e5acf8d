"""Studies run in a test: stopped where one likes, compared but for times, refused before anything is loaded."""

import dataclasses
import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from experiments.common.options import option
from experiments.common.study import Study


class Ran(NamedTuple):
    """What a command did."""

    status: int
    text: str
    begun: list[str]  # pieces, or trainings


def ran(
    study: Study,
    *arguments: str,
    data: Any = None,
    stop_before: str | None = None,
    on_step: Callable[[str, int], None] | None = None,
) -> Ran:
    """Run the command; Ctrl-C arrives before the piece `stop_before`; `data` stands for what it would load."""
    begun, text = [], StringIO()

    def on_piece(name: str, step: int) -> None:
        if name == stop_before:
            raise KeyboardInterrupt
        if name not in begun:
            begun.append(name)
        if on_step is not None:
            on_step(name, step)

    if data is not None:
        study = dataclasses.replace(study, load=lambda config, cache, progress: data)
    status = study.main(arguments, Console(file=text, width=200), on_piece)
    return Ran(status, text.getvalue(), begun)


def options_of(config: Any) -> list[str]:
    """A study's config as its command is given it."""
    found = []
    for name, value in vars(config).items():
        found += [option(name), *map(str, value if isinstance(value, tuple) else (value,))]
    return found


def refused(study: Study, *arguments: str) -> bool:
    """Whether the command ends with status 2 before it loads anything; what is let through is not run."""

    def load(config: object, cache: Path, progress: object) -> None:
        raise KeyboardInterrupt

    return dataclasses.replace(study, load=load).main(arguments, Console(file=StringIO())) == 2


def results(folder: Path, *timed: str) -> dict:
    """The pieces of a run, without what has `seconds`, or one of `timed`, in its name."""
    return _without(json.loads((folder / "metrics.json").read_text())["results"], ("seconds", *timed))


def _without(value: Any, names: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        kept = [name for name in value if not any(part in name for part in names)]
        return {name: _without(value[name], names) for name in kept}
    return [_without(part, names) for part in value] if isinstance(value, list) else value
