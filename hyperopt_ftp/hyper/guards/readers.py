"""Whether code that is visible can take the number of a tensor, so that later calls of it are watched."""

from __future__ import annotations

import builtins
import dis
from collections.abc import Hashable, Iterable
from functools import lru_cache, partial
from types import CodeType, MethodType, ModuleType

from torch import nn

from .surroundings import package_of

_OWN = __name__.partition(".")[0]
#: Packages whose Python code takes no number of an argument that should have stayed a tensor.
_TRUSTED = frozenset(("torch", "einops", _OWN))
#: Attributes that give a number, make a tensor of one, or lead to any attribute.
_READ = frozenset((
    "item", "tolist", "numpy", "data", "tensor", "as_tensor", "asarray", "new_tensor", "linspace", "logspace",
    "__float__", "__int__", "__index__", "__complex__", "__array__", "__getattribute__", "__getattr__",
))  # fmt: skip
_HARMLESS = frozenset((
    "abs", "all", "any", "bool", "callable", "dict", "enumerate", "filter", "frozenset", "id", "isinstance",
    "issubclass", "iter", "len", "list", "map", "max", "min", "next", "print", "range", "repr", "reversed", "set",
    "slice", "sorted", "str", "sum", "super", "tuple", "type", "zip", "NotImplemented",
))  # fmt: skip
#: What is built in and makes a number of a tensor, or runs code that cannot be seen.
_BUILT_IN = {name for name in dir(builtins) if not name.endswith("Error")} - _HARMLESS
#: Instructions that look a name up: local variables and those of a closure are seen by their values.
_OF_GLOBALS = frozenset(("LOAD_GLOBAL", "LOAD_NAME"))
_OF_NAMES = _OF_GLOBALS | {"LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR", "IMPORT_FROM"}


def may_read(surroundings: Iterable[Hashable]) -> bool:
    """Whether a function with such a key of :func:`~.surroundings.surroundings` may take the number of a tensor.

    By the names in its code: where none is among those that lead to a number, no call takes one.
    """
    return not all(map(_is_harmless, surroundings))


def _is_harmless(part: Hashable) -> bool:
    if isinstance(part, tuple) and isinstance(part[0], str):  # a function of a package
        package, what = part
        if isinstance(what, CodeType):
            return package in _TRUSTED or _reads_none(what)
        return package in _TRUSTED and what.rpartition(".")[2] not in _READ
    if isinstance(part, type):
        ours = issubclass(part, nn.Module) or part in (partial, MethodType)  # looked through
        built_in = part.__module__ == "builtins" and part.__name__ in _HARMLESS
        return ours or built_in or package_of(part.__module__) in _TRUSTED
    return not isinstance(part, ModuleType) or package_of(part.__name__) in _TRUSTED


@lru_cache(maxsize=4096)
def _reads_none(code: CodeType) -> bool:
    for step in dis.get_instructions(code):
        name, how = step.argval, step.opname
        if how == "IMPORT_NAME" and package_of(name) not in _TRUSTED:
            return False
        if how in _OF_GLOBALS and name in _BUILT_IN:
            return False
        if how in _OF_NAMES and name in _READ:
            return False
    return all(_reads_none(x) for x in code.co_consts if isinstance(x, CodeType))
