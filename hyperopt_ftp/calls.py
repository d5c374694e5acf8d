"""Calls whose arguments do not fit: Python's error, and what was probably meant."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from .hparams import did_you_mean

__all__ = ["check_fit", "explained"]

F = TypeVar("F", bound=Callable[..., Any])

#: Arguments by the names that other libraries and the code of FTP's authors give them.
ELSEWHERE = {
    "wd": "weight_decay", "b1": "betas", "b2": "betas", "k": "kappa", "pre": "anchor",
}  # fmt: skip


def explained(hint: str | None = None) -> Callable[[F], F]:
    """A decorator: where the arguments of a call do not fit, the ``TypeError`` has a near miss, or else ``hint``.

    Args:
        hint: how the function is called. Where an argument is unknown, the names of all come before it.

    The signature stays as it is, and a call that fits is only passed on.

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
    """Why the arguments do not fit; ``None`` where they do, and an error came later."""
    signature = inspect.signature(function)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        names = [name for name in signature.parameters if name != "self"]
        unknown = [name for name in kwargs if name not in names]
        meant = "".join(dict.fromkeys(did_you_mean(_here(name, names), names) for name in unknown))
        title = getattr(function, "__qualname__", type(function).__name__).removesuffix(".__init__")
        what = f"got an unexpected keyword argument {unknown[0]!r}" if unknown else str(error)
        if meant:
            return f"{title}: {what}{meant}"
        known = f"the arguments are {', '.join(names)}" if unknown else None
        return "; ".join(filter(None, [f"{title}: {what}", known, hint]))
    return None


def _here(name: str, names: list[str]) -> str:
    """What an argument is called here."""
    name = name.replace("learning_rate", "lr")
    return ELSEWHERE[name] if ELSEWHERE.get(name) in names else name
