"""Calls: whether arguments fit and are allowed, what an error says where not, and which line a warning names."""

from __future__ import annotations

import difflib
import inspect
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, cast

import torch

F = TypeVar("F", bound=Callable[..., Any])

#: Names that an error lists at most.
MOST = 20

#: Folders whose lines are nobody's own: torch puts hooks, contexts and schedulers around a call.
INSIDE = tuple(f"{path.resolve()}{os.sep}" for path in (Path(__file__).parent, Path(torch.__file__).parent))

#: Arguments by the names that other libraries and the code of FTP's authors give them.
ELSEWHERE = {
    "wd": "weight_decay", "b1": "betas", "b2": "betas", "k": "kappa", "pre": "anchor",
    "T_max": "steps", "total_iters": "steps", "eta_min": "floor", "gamma": "decay", "milestones": "at",
    "start_factor": "start", "end_factor": "end", "pct_start": "share",
}  # fmt: skip


def explained(hint: str | None = None) -> Callable[[F], F]:
    """A decorator: if the arguments of a call do not fit, the ``TypeError`` names a close match, or else ``hint``.

    Args:
        hint: how the function is called. For an unknown argument, the names of all arguments come before it.

    The signature does not change, and a call that fits is only passed on. For a class, ``__init__`` is decorated.

    >>> from hyperopt_ftp.calls import explained
    >>> @explained("halve(what=3)")
    ... def halve(what):
    ...     return what / 2
    >>> halve(waht=3)
    Traceback (most recent call last):
    TypeError: halve: got an unexpected keyword argument 'waht'; did you mean 'what'?
    >>> halve()
    Traceback (most recent call last):
    TypeError: halve: missing a required argument: 'what'; halve(what=3)
    """

    def decorate(function: F) -> F:
        if isinstance(function, type):
            of_class: Any = function
            of_class.__init__ = decorate(of_class.__init__)
            return of_class

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            except TypeError:
                wrong = _misfit(function, args, kwargs, hint)
                if wrong is None:
                    raise
            raise TypeError(wrong)

        return cast(F, call)

    return decorate


def check_fit(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> None:
    """The ``TypeError`` of a call whose arguments would not fit, before it is made.

    >>> from hyperopt_ftp.calls import check_fit
    >>> check_fit(lambda groups, lr: None, [], lr=0.1)
    >>> check_fit(lambda groups, lr: None, [], learning_rate=0.1)
    Traceback (most recent call last):
    TypeError: <lambda>: got an unexpected keyword argument 'learning_rate'; did you mean 'lr'?
    """
    wrong = _misfit(function, args, kwargs, None)
    if wrong is not None:
        raise TypeError(wrong)


def _misfit(function: Callable[..., Any], args: Any, kwargs: dict[str, Any], hint: str | None) -> str | None:
    signature = inspect.signature(function)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        names = [name for name in signature.parameters if name != "self"]
        unknown = [name for name in kwargs if name not in names]
        meant = "".join(dict.fromkeys(did_you_mean(name, names) for name in unknown))
        title = getattr(function, "__qualname__", type(function).__name__).removesuffix(".__init__")
        what = f"got an unexpected keyword argument {unknown[0]!r}" if unknown else str(error)
        if meant:
            return f"{title}: {what}{meant}"
        known = f"the arguments are {', '.join(names)}" if unknown else None
        return "; ".join(filter(None, [f"{title}: {what}", known, hint]))
    return None


def _here(name: str, names: list[str]) -> str:
    """What an argument is called here; beta1 is the first of the betas."""
    name = name.replace("learning_rate", "lr")
    if match := re.fullmatch(r"(.*\.)?beta_?([1-9])", name):
        name = f"{match[1] or ''}betas.{int(match[2]) - 1}"
    return ELSEWHERE[name] if ELSEWHERE.get(name) in names else name


def did_you_mean(
    name: Any, names: Iterable[Any], cutoff: float = 0.6, meant: Mapping[str, str] = MappingProxyType({})
) -> str:
    """A hint where one of the names is close to a wrong one: ``cutoff`` is how close, up to 1.

    ``meant`` has what to write in place of some of the names.
    """
    by_lower = {str(other).lower(): meant.get(other, str(other)) for other in names}
    close = difflib.get_close_matches(_here(str(name), list(by_lower.values())).lower(), by_lower, n=1, cutoff=cutoff)
    return f"; did you mean {by_lower[close[0]]!r}?" if close else ""


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else f"an object of the class {type(value).__name__}"


def few(names: Sequence[Any]) -> str:
    """The names as an error lists them: the first, and how many more there are."""
    return f"{list(names[:MOST])}" + (f" and {len(names) - MOST} more" if len(names) > MOST else "")


def check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(
            f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}{did_you_mean(value, allowed)}"
        )


def check_count(name: str, value: Any, what: str, none: bool = False, least: int = 1) -> None:
    """``ValueError`` unless ``value`` is a whole number of at least that, or ``None`` where that is allowed."""
    if value is None and none:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        allowed = f"{'None or ' if none else ''}a number of {what} >= {least}"
        raise ValueError(f"{name} must be {allowed}, got {shown(value)}{', no int' * isinstance(value, float)}")


def check_flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {shown(value)}")


def check_compile(compile: Any) -> None:
    """``TypeError`` or ``ValueError`` unless it is a flag or the name of one of torch.compile's backends."""
    if isinstance(compile, bool):
        return
    usual = torch.compiler.list_backends()
    if not isinstance(compile, str):
        raise TypeError(f"compile must be True, False or the name of a backend such as {usual}, got {shown(compile)}")
    names = torch.compiler.list_backends(exclude_tags=())
    if compile not in names:
        raise ValueError(
            f"compile must be True, False or the name of a backend such as {usual}, got {compile!r}"
            f"{did_you_mean(compile, names)}"
        )


def warn_caller(text: str) -> None:
    """A ``UserWarning`` at the first line that is neither of this package nor of torch."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(INSIDE):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, UserWarning, stacklevel=level)
