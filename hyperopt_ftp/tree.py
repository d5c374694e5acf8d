"""Pytrees of tensors: ``torch.utils._pytree``, wrapped once, with errors that name what differs."""

from __future__ import annotations

import copy
from collections import UserDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = [
    "Structure",
    "aligned",
    "by_path",
    "children",
    "entry",
    "fitted",
    "flatten",
    "key_at",
    "leaves",
    "map_tree",
    "named",
    "pick",
    "put",
    "replaced",
    "structure",
    "unshared",
    "working",
]


class Structure:
    """How a tree is built: puts leaves in place, and lists those of another tree of the same structure.

    Attributes:
        leaves: of the tree that it was made from.

    Params, states and hparams are dicts, lists and tuples of tensors and numbers: these are walked here, since pytree,
    which takes anything, takes three times as long.
    """

    def __init__(self, tree: Any) -> None:
        self._tree: Any = tree
        keyed = type(tree) is dict or (not isinstance(tree, _UNKEYED) and isinstance(tree, UserDict))
        self._keys: list[Any] | None = list(self._tree) if keyed else None
        self._parts: Sequence[Structure | None] | None = None  # None: a leaf
        self._whole: Callable[[Sequence[Any]], Any] | None = None  # of what pytree alone knows, from its children
        self.leaves: list[Any] = []
        children = _children(tree)
        if children is None:
            self.leaves.append(tree)
            return
        values, self._whole = children
        if _PLAIN.issuperset(map(type, values)):  # without a loop of Python's: most nodes hold tensors alone
            self.leaves += values
            self._parts = [None] * len(self.leaves)
            return
        self._parts = parts = [None if isinstance(x, _LEAVES) else Structure(x) for x in values]
        for x, part in zip(values, parts, strict=True):
            self.leaves += (x,) if part is None else part.leaves

    def __call__(self, new: Sequence[Any]) -> Any:
        """A tree with the leaves ``new``."""
        new = list(new)
        if len(new) != len(self.leaves):
            raise ValueError(f"{len(new)} leaves do not fit into a tree of {len(self.leaves)}")
        return self._filled(iter(new))

    def _filled(self, new: Iterator[Any]) -> Any:
        if self._parts is None:
            return next(new)
        if any(self._parts):
            values = [next(new) if part is None else part._filled(new) for part in self._parts]
        else:
            values = [*islice(new, len(self._parts))]
        if self._whole is not None:
            return self._whole(values)
        if self._keys is not None:
            return dict(zip(self._keys, values, strict=True))
        return type(self._tree)(values) if type(self._tree) in (tuple, list) else _namedtuple(self._tree, values)

    def aligned(self, tree: Any, what: str = "tree") -> list[Any]:
        """Leaves of ``tree`` in order, or a ``ValueError`` where it has another structure."""
        found: list[Any] = []
        if self._collect(tree, found):
            return found
        spec = pytree.tree_structure(self._tree)
        try:
            found = spec.flatten_up_to(tree)
            if len(found) != len(self.leaves):  # a UserDict is a leaf there
                raise ValueError("a UserDict has another class or other keys")
            return found
        except ValueError as error:
            names = [name for name, _ in named(tree)]
            missing = next(
                (f": there is no entry {name!r} among {names}" for name, _ in named(self._tree) if name not in names),
                "",
            )
            raise ValueError(
                f"{what} must have the structure of the parameters{missing}.\n  given: {pytree.tree_structure(tree)}"
                f"\n  expected: {spec}\n  ({error})"
            ) from None

    def _collect(self, tree: Any, found: list[Any]) -> bool:
        """Append the leaves of ``tree``; ``False``: pytree has to look."""
        if type(tree) is not type(self._tree):
            return False
        if self._parts is None:
            found.append(tree)
            return True
        if (self._whole is not None and self._keys is None) or len(tree) != len(self._parts):
            return False
        if self._keys is not None:
            if not all(map(tree.__contains__, self._keys)):
                return False
            tree = [*map(tree.__getitem__, self._keys)]
        if not any(self._parts):
            found += tree
            return True
        for x, part in zip(tree, self._parts, strict=True):
            if part is None:
                found.append(x)
            elif not part._collect(x, found):
                return False
        return True


def _namedtuple(like: Any, values: Sequence[Any]) -> Any:
    """A namedtuple of the class of ``like``.

    A ``__new__`` of its own may check the values (``PackedSequence``), and these may be flags, one for each leaf. It is
    called only where it has made more than them: attributes.
    """
    return type(like)(*values) if getattr(like, "__dict__", None) else tuple.__new__(type(like), values)


def _userdict(like: UserDict[Any, Any], values: Sequence[Any]) -> UserDict[Any, Any]:
    new = copy.copy(like)
    new.data = dict(zip(like.data, values, strict=True))
    return new


_LEAVES = (Tensor, bool, int, float, str)
_UNKEYED = (tuple, list, *_LEAVES)  # which it takes less time to see than what is a UserDict
_PLAIN = frozenset((*_LEAVES, torch.nn.Parameter, type(None)))


def _children(tree: Any) -> tuple[Collection[Any], Callable[[Sequence[Any]], Any] | None] | None:
    """The entries of a node, and for a kind that pytree alone knows, what builds one of others; ``None``: a leaf."""
    kind = type(tree)
    if kind in _PLAIN:
        return None
    if kind is dict:
        return tree.values(), None
    if kind is tuple or kind is list or (isinstance(tree, tuple) and hasattr(tree, "_fields")):
        return tree, None
    if isinstance(tree, UserDict):  # as a tokenizer returns
        return tree.data.values(), lambda new: _userdict(tree, new)
    node = None if isinstance(tree, _LEAVES) else pytree.SUPPORTED_NODES.get(kind)
    if node is None:
        return None
    values, context = node.flatten_fn(tree)
    return [*values], lambda new: node.unflatten_fn(new, context)


def children(tree: Any) -> Collection[Any] | None:
    """The entries of a node; ``None``: a leaf."""
    found = _children(tree)
    return None if found is None else found[0]


def flatten(tree: Any) -> tuple[list[Any], Structure]:
    """Leaves of ``tree``, and a function that builds the same structure from a list of leaves."""
    found = Structure(tree)
    return found.leaves, found


def leaves(tree: Any) -> list[Any]:
    """Leaves of ``tree``, in order; without the structure they take half as long."""
    found: list[Any] = []
    _append_leaves(tree, found)
    return found


def tensors(tree: Any) -> list[Tensor]:
    return [x for x in leaves(tree) if isinstance(x, Tensor)]


def _append_leaves(tree: Any, found: list[Any]) -> None:
    kind = type(tree)
    if kind is dict:
        values = tree.values()
    elif kind is list or kind is tuple:
        values = tree
    else:
        children = _children(tree)
        if children is None:
            found.append(tree)
            return
        values = children[0]
    if _PLAIN.issuperset(map(type, values)):
        found += values
        return
    for x in values:
        if type(x) in _PLAIN:
            found.append(x)
        else:
            _append_leaves(x, found)


def structure(tree: Any) -> Any:
    """The structure of a tree, for comparisons."""
    return pytree.tree_structure(tree)


def aligned(tree: Any, like: Any, what: str = "tree") -> list[Any]:
    """Leaves of ``tree`` in the order of ``like``'s, or a ``ValueError`` when the two structures differ."""
    return Structure(like).aligned(tree, what)


def fitted(tree: Any, like: Structure) -> list[Any] | None:
    """Leaves of a tree in the order of a structure's; ``None`` where it has another one."""
    try:
        return like.aligned(tree)
    except ValueError:
        return None


def map_tree(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """``function(leaf, *others)`` for each leaf of ``tree`` and those of ``rest`` in its place."""
    values, rebuild = flatten(tree)
    return rebuild([function(*row) for row in zip(values, *map(rebuild.aligned, rest), strict=True)])


def by_path(tree: Any) -> dict[str, Any]:
    """Leaves by the dotted path of their keys; ``None`` counts as absent."""
    pairs = [(name, leaf) for name, leaf in named(tree) if leaf is not None]
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two entries of a tree have the path {twice!r}; rename a key, paths join keys by dots")
    return found


def named(tree: Any) -> list[tuple[str, Any]]:
    """Pairs of the dotted path and the value of each leaf.

    >>> from hyperopt_ftp import tree
    >>> tree.named({"a": [1.0, 2.0]})
    [('a.0', 1.0), ('a.1', 2.0)]
    """
    return [(name_of(path), leaf) for path, leaf in pytree.tree_flatten_with_path(tree)[0]]


def name_of(path: Sequence[Any]) -> str:
    """``(MappingKey("a"), SequenceKey(0))`` as ``"a.0"``."""
    return ".".join(str(getattr(entry, "key", getattr(entry, "idx", getattr(entry, "name", entry)))) for entry in path)


def pick(tree: Any, part: dict[str, Any]) -> dict[str, Any]:
    """The leaves of ``tree`` at the paths of ``part``."""
    found = by_path(tree)
    missing = [name for name in part if name not in found]
    if missing:
        raise ValueError(f"there is no entry {missing[0]!r} among {list(found)}; give one for each anchor")
    return {name: found[name] for name in part}


def put(tree: Any, part: dict[str, Any]) -> Any:
    """``tree`` with the leaves at the paths of ``part`` replaced."""
    pairs, spec = pytree.tree_flatten_with_path(tree)
    return pytree.tree_unflatten([part.get(name_of(path), leaf) for path, leaf in pairs], spec)


def key_at(tree: Any, path: str) -> tuple[Any, str]:
    """The key of ``tree`` that ``path`` starts with (the longest: keys may hold dots), and the rest of the path."""
    if type(tree) is dict and path in tree:
        return path, ""
    if isinstance(tree, Mapping):
        keys: list[Any] = sorted((k for k in tree if path == str(k) or path.startswith(f"{k}.")), key=str)
        if keys:
            return keys[-1], path[len(str(keys[-1])) + 1 :]
    elif isinstance(tree, (tuple, list)):
        head, _, rest = path.partition(".")
        if head in getattr(tree, "_fields", ()):  # as :func:`named` has it
            return tree._fields.index(head), rest  # pyright: ignore[reportAttributeAccessIssue]
        if head.isdecimal() and int(head) < len(tree):
            return int(head), rest
    raise KeyError(path)


def entry(tree: Any, path: str) -> Any:
    """What a dotted path leads to, a leaf or a tree; a ``KeyError`` where it leads nowhere."""
    key, rest = key_at(tree, path)
    return entry(tree[key], rest) if rest else tree[key]


def replaced(tree: Any, path: str, value: Any) -> Any:
    """``tree`` with ``value`` in place of what the path leads to."""
    key, rest = key_at(tree, path)
    new = replaced(tree[key], rest, value) if rest else value
    if type(tree) is dict:
        return {**tree, key: new}
    if isinstance(tree, (dict, UserDict)):
        changed = copy.copy(tree)  # of its own class
        changed[key] = new
        return changed
    values = [*tree[:key], new, *tree[key + 1 :]]
    return _namedtuple(tree, values) if hasattr(tree, "_fields") else type(tree)(values)


def unshared(tree: Any, others: Any) -> Any:
    """``tree`` with copies in the place of those tensors that lie in the memory of tensors in ``others``."""
    theirs = {x.untyped_storage().data_ptr() for x in tensors(others)}

    def own(x: Any) -> Any:
        return x.clone() if isinstance(x, Tensor) and x.untyped_storage().data_ptr() in theirs else x

    return map_tree(own, tree)


NARROW = frozenset({torch.float16, torch.bfloat16})


def working(x: Tensor) -> Tensor:
    """``x`` in the precision that arithmetic is done in: 16-bit floats as float32, others as they are."""
    return x.float() if x.dtype in NARROW else x
