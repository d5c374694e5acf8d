"""What a function depends on beside its arguments, as a key: the code that it runs, and what that closes over.

By the key, whether that code can take the number of a tensor, so that later calls of it are watched.
"""

from __future__ import annotations

import builtins
import dis
import functools
import os
import sys
import types
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from contextlib import suppress
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from ... import tree
from ...hparams import Domain, is_wrapped
from ..core.torch_private import differentiated

_OWN = __name__.partition(".")[0]
_FIXED = {torch.__name__, "numpy", "einops", "builtins"}
_STANDARD = os.path.dirname(os.__file__)
_VALUES = frozenset((type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, Domain))
_HOLD = frozenset((tuple, list, set, frozenset, dict, OrderedDict))  # a module keeps its hooks in the last
_PARTS = (FunctionType, Tensor, nn.Module)
#: Objects up to which it is worth to look at them all.
_MOST = 5_000

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


def surroundings(*values: Any) -> tuple[Hashable, ...] | None:
    """A key that differs where functions may do other things; ``None`` if not all that they depend on is visible.

    Of numbers and strings it has the value, of tensors their shapes, whether they require grad or are in a transform,
    and the attributes that they were given, of modules the classes, the modes and the plain attributes, of functions
    the code, the defaults, and what they close over or name as globals. It holds code and classes alone, no tensor and
    no module.
    """
    key: list[Any] = []
    seen: dict[int, int] = {}  # how manieth each is
    stack = [*values]
    while stack:
        x = stack.pop()
        kind = type(x)
        if kind in _VALUES:
            key.append((kind, x))
        elif isinstance(x, Tensor):
            key.append(_of_tensor(x))
            stack += x.__dict__.values()
        elif id(x) in seen:
            key.append(seen[id(x)])
        else:
            seen[id(x)] = len(seen)
            parts = _parts(x, kind, key)
            if parts is None:
                return None
            stack += parts
            if len(key) + len(stack) > _MOST:
                return None
    return (*key,)


def _of_tensor(x: Tensor) -> tuple[Any, ...]:
    shape = None if x.is_nested else x.shape
    # A count, or a flag, may choose what is done.
    flag = type(x) is Tensor and not x.ndim and x.is_cpu and not x.is_floating_point() and not is_wrapped(x)
    return type(x), differentiated(x), is_wrapped(x), shape, x.item() if flag and not x.is_meta else None


def requires_grad(key: tuple[Hashable, ...]) -> bool:
    """Whether a tensor requires grad among those that a key knows."""
    kinds = [part[0] for part in key if isinstance(part, tuple) and part[1] is True]
    return any(isinstance(kind, type) and issubclass(kind, Tensor) for kind in kinds)


def _parts(x: Any, kind: Any, key: list[Any]) -> list[Any] | None:
    """What an object depends on; what it is itself is added to the key."""
    if kind is FunctionType:
        package = package_of(x.__globals__.get("__name__", ""))  # where it was written: wrappers have another's name
        key.append((package, x.__code__))
        return _of_function(x, package)
    if kind in (functools.partial, types.MethodType):
        key.append(kind)
        return [x.func, x.args, x.keywords] if kind is functools.partial else [x.__func__, x.__self__]
    if kind in _HOLD or hasattr(kind, "_fields"):
        key.append((kind, len(x)))
        rows = (x.keys(), x.values()) if isinstance(x, dict) else (x,)
        return [y for row in rows for y in row] if len(x) < _MOST else None
    if kind is types.BuiltinFunctionType:
        key.append((package_of(x.__module__), x.__qualname__))
        return [] if isinstance(x.__self__, (types.ModuleType, type(None))) else [x.__self__]
    if isinstance(x, (types.ModuleType, type)):
        key.append(x)
        return [] if _is_known(package_of(x.__name__ if isinstance(x, types.ModuleType) else x.__module__)) else None
    if isinstance(x, nn.Module) or package_of(getattr(kind, "__module__", "")) == _OWN:
        slots = any(vars(base).get("__slots__") for base in kind.__mro__)
        if isinstance(x, nn.Module) and (slots or _has_any_global_hook()):
            return None
        attributes = getattr(x, "__dict__", {})
        key.append((kind, (*attributes,)))  # with the names of attributes
        return [
            *attributes.values(),
            *(y for cls in kind.__mro__ if not _is_known(package_of(cls.__module__)) for y in _of_class(cls)),
        ]
    return None


@functools.lru_cache(maxsize=1024)
def _is_fixed(package: str) -> bool:
    """Whether its functions, classes and modules are what they are; not a user's that is called as one of Python's."""
    if package not in sys.stdlib_module_names:
        return package in _FIXED
    module = sys.modules.get(package)
    place = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), _STANDARD)
    return os.path.abspath(place).startswith(_STANDARD)


def _is_known(package: str) -> bool:
    return package == _OWN or _is_fixed(package)


def _of_class(cls: type) -> list[Any]:
    """The methods and values of a user's class, whose own code may read anything."""
    found: list[Any] = []
    for x in vars(cls).values():
        if isinstance(x, property):
            found += [f for f in (x.fget, x.fset) if f is not None]
        elif isinstance(x, (staticmethod, classmethod)):
            found.append(x.__func__)
        elif isinstance(x, functools.cached_property):
            found.append(x.func)
        elif isinstance(x, _PARTS) or type(x) in _VALUES or (type(x) in _HOLD and _holds_parts(x)):
            found.append(x)
    return found


def _holds_parts(x: Any) -> bool:
    """Whether a container has values alone, or a tensor or a module somewhere."""
    leaves = tree.leaves(x)
    return all(type(y) in _VALUES for y in leaves) or any(isinstance(y, _PARTS) for y in leaves)


def package_of(name: Any) -> str:
    return str(name).partition(".")[0]


def _of_function(function: FunctionType, package: str) -> list[Any]:
    if _is_fixed(package) and not function.__closure__:
        return []
    parts: list[Any] = [function.__defaults__, function.__kwdefaults__, *((vars(function),) if vars(function) else ())]
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # empty
            parts.append(cell.cell_contents)
    if not _is_known(package):
        names = _names(function.__code__)
        parts += [function.__globals__[name] for name in names if name in function.__globals__]
    return parts


@functools.lru_cache(maxsize=4096)
def _names(code: CodeType) -> tuple[str, ...]:
    """Globals that code, and the functions in it, may read."""
    inner = (_names(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return (*code.co_names, *(name for names in inner for name in names))


def may_read(surroundings: Iterable[Hashable]) -> bool:
    """Whether a function with such a key of :func:`surroundings` may take the number of a tensor.

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
        ours = issubclass(part, nn.Module) or part in (functools.partial, types.MethodType)  # looked through
        built_in = part.__module__ == "builtins" and part.__name__ in _HARMLESS
        return ours or built_in or package_of(part.__module__) in _TRUSTED
    return not isinstance(part, types.ModuleType) or package_of(part.__name__) in _TRUSTED


@functools.lru_cache(maxsize=4096)
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
