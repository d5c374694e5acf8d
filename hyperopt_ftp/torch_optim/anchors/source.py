"""Where a parameter's anchor comes from, and how it is kept."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...calls import check_flag, did_you_mean
from ...dtensors import is_dtensor, local, whole
from ...kernels import sharded
from ...kernels.layers import ABSENT
from ...types import Anchor, Device
from ..checks.arguments import DTYPES
from ..checks.names import no_entry, unwrapped

#: Elements of a fingerprint at a time: the arithmetic takes 8 bytes each, and is to stay in the caches.
CHUNK = 2**16


class AnchorSource:
    """The values just before the first step, zero, given tensors by name, or those of a safetensors file.

    Args:
        anchor: ``None``, ``"zero"``, a dict of tensors by parameter name, or the path of a ``.safetensors`` file, which
            is mapped into memory and takes no room in the optimizer's state.
        dtype: store anchors in this dtype if that changes no value, else as they are.
        saved: whether checkpoints hold the anchors, or a fingerprint of each.
        device: store anchors on this device; ``None``: beside their parameters.
    """

    def __init__(self, anchor: Anchor, dtype: torch.dtype | None, device: Device, saved: bool) -> None:
        path = isinstance(anchor, (str, os.PathLike)) and str(anchor).endswith(".safetensors")
        self.zero: bool = isinstance(anchor, str) and anchor == "zero"
        if anchor is not None and not self.zero and not isinstance(anchor, Mapping) and not path:
            is_text = isinstance(anchor, (str, os.PathLike))
            got = f"{anchor!r}{did_you_mean(anchor, ['zero'])}" if is_text else type(anchor).__name__
            raise ValueError(
                "anchor must be None (the values just before the first step), 'zero', a dict of tensors by name such "
                f"as module.state_dict(), or the path of a .safetensors file, got {got}"
            )
        if dtype is not None and dtype not in DTYPES:
            raise ValueError(f"anchor_dtype must be None or one of {DTYPES}, got {dtype!r}")
        check_flag("save_anchor", saved)
        self.dtype: torch.dtype | None = dtype
        self.saved: bool = saved
        self.device: torch.device | None = None if device is None else _usable(device)
        self.path: str | None = str(anchor) if path else None
        self._given: dict[str, Any] | None = None
        if self.path is not None:
            self._given = _mapped(self.path)
        elif isinstance(anchor, Mapping):
            self._given = _by_name(anchor)
        self._versions: dict[str, int] = _versions(self._given)
        self._copied: set[str] = set()  # entries that lay in the memory of the weights

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._versions = _versions(self._given)  # those of a copy begin anew

    @property
    def is_start(self) -> bool:
        """Whether anchors are the values just before the first step."""
        return self._given is None and not self.zero

    def check(self, names: Sequence[str] | None, params: Sequence[Tensor], constrained: Sequence[bool]) -> None:
        """``ValueError`` unless there is a fitting anchor for each constrained parameter."""
        if self._given is None:
            return
        if names is None:
            raise ValueError("an anchor by name needs names: pass model.named_parameters()")
        held = [(name, p) for name, p, held in zip(names, params, constrained, strict=True) if held]
        missing = {unwrapped(name): p for name, p in held if self._given.get(unwrapped(name)) is None}
        if missing:
            raise ValueError(no_entry(missing, list(map(unwrapped, names)), self._given, self.path))
        for name, p in held:
            value = self._given[unwrapped(name)]
            if not isinstance(value, Tensor) or value.dtype not in DTYPES or value.shape != p.shape:
                got = f"{tuple(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"anchor entry {name!r} must be a floating-point tensor of shape {tuple(p.shape)}, got {got}"
                )
            if not _is_true(value.isfinite().all()):
                raise ValueError(f"anchor entry {name!r} must be finite, got NaN or infinity; is the file damaged?")
        moving = {_memory(p) for p in params} - {0}
        for name in dict.fromkeys(unwrapped(name) for name, _ in held):
            if _memory(self._given[name]) in moving:  # it would go along until the first step
                self.check_unchanged(name)
                value = self._given[name].detach()
                self._given[name] = torch.empty_like(value, device=self.device or value.device).copy_(value)
                self._copied.add(name)

    def start(self, p: Tensor, name: Any, state: dict[str, Any], source: Tensor | None = None) -> None:
        """Put the anchor into a parameter's state, where it belongs there; ``source`` if it is rounded already."""
        if self.zero:
            state["anchor_fingerprint"] = 0
            return
        if self.path is not None and not is_dtensor(p):
            return  # its fingerprint is taken when a checkpoint is
        source = (self._precisions(p, name)[0] if source is None else source).detach().resolve_neg()
        if is_dtensor(p):
            source = sharded.place(source, p)
        dtype = source.dtype
        if self.dtype not in (None, torch.float64) and _is_equal(source.to(self.dtype).to(dtype), source):
            dtype = self.dtype
        anchor = torch.empty_like(p.detach(), dtype=dtype, device=self.device or p.device)
        state["anchor"] = anchor.copy_(source)  # in the parameter's memory format
        if self._given is not None and (key := unwrapped(str(name))) in self._copied:
            self._given[key] = anchor  # one copy is enough
        if not self.saved:
            state["anchor_fingerprint"] = fingerprint(anchor)

    def sign(self, p: Tensor, name: Any, state: dict[str, Any]) -> None:
        """Before a checkpoint, of an initialized parameter: the fingerprint of an anchor in a file."""
        if "anchor" not in state and "anchor_fingerprint" not in state:
            state["anchor_fingerprint"] = fingerprint(self._known(p, name))

    def check_unchanged(self, name: Any) -> None:
        """``RuntimeError`` if the anchor of a parameter has changed before its first step, which may come late."""
        key = unwrapped(str(name))
        if (before := self._versions.get(key)) is None or key in self._copied:
            return
        assert self._given is not None
        if self._given[key]._version != before:
            raise RuntimeError(
                f"anchor entry {key!r} has changed since the optimizer was made, and only now does {key!r} begin to "
                "train; give copies: anchor={n: x.clone() for n, x in given.items()}"
            )

    def _known(self, p: Tensor, name: Any) -> Tensor:
        return p if self._given is None else self._given[unwrapped(str(name))]

    def _precisions(self, p: Tensor, name: Any) -> list[Tensor]:
        """The anchor as it is kept: in the working precision of the weights, as arithmetic is; then as it would be kept
        had they begun on the other side of float64."""
        known = self._known(p, name)
        if known.dtype != torch.float64:
            return [known]
        return [known, known.float()] if p.dtype == torch.float64 else [known.float(), known]

    def restore(self, p: Tensor, name: Any, state: dict[str, Any], live: dict[str, Any]) -> None:
        """Complete loaded state by the anchor that its checkpoint leaves out; ``live`` is the state that it replaces.

        Raises:
            ValueError: there is no anchor for it, or another one than in the run that saved it.
        """
        saved = state.get("anchor")
        wanted = state.get("anchor_fingerprint") if saved is None else saved
        if not isinstance(wanted, (Tensor, int)):
            raise ValueError(f"the checkpoint has no anchor and no fingerprint of one for {name!r}: it is damaged")
        if not self.is_start:
            mine = self._same(wanted, [None] if self.zero else self._precisions(p, name), name)
            if saved is None:
                self.start(p, name, state, mine)
        elif saved is None:
            if "anchor" not in live:
                what = "'zero'" if wanted == 0 else "a dict or file of the weights that the run began with"
                raise ValueError(
                    f"the checkpoint leaves out the anchor of {name!r}; build the optimizer with anchor={what}"
                )
            self._same(wanted, [live["anchor"]], name)
            state["anchor"] = live["anchor"]
        if "anchor" in state and self.saved:
            state.pop("anchor_fingerprint", None)
        elif "anchor" in state and "anchor_fingerprint" not in state:
            state["anchor_fingerprint"] = fingerprint(state["anchor"])

    def _same(self, wanted: Tensor | int, mine: Sequence[Tensor | None], name: Any) -> Tensor | None:
        """The first that equals a saved anchor, or has its fingerprint; ``None`` is zero."""
        for w0 in mine:
            if isinstance(wanted, int):
                same = wanted == (0 if w0 is None else fingerprint(w0))
            elif w0 is None:
                same = _is_true((wanted == 0).all())
            else:
                here = sharded.place(w0, wanted) if is_dtensor(wanted) else whole(w0)
                wide = torch.promote_types(wanted.dtype, w0.dtype)
                same = _is_equal(wanted.to(wide), here.to(wide).to(wanted.device))
            if same:
                return w0
        zero = isinstance(wanted, int) and wanted == 0
        what = "build the optimizer with anchor='zero'" if zero else "give the weights that the run began with"
        raise ValueError(f"the anchor of {name!r} is not the one that the checkpoint was made with; {what}")

    def of(self, name: Any, state: dict[str, Any]) -> Tensor:
        """The anchor of an initialized parameter, as it is stored; empty for zero."""
        if "anchor" in state or self._given is None:
            return state.get("anchor", ABSENT)
        return self._given[unwrapped(str(name))]


def _versions(given: Mapping[str, Any] | None) -> dict[str, int]:
    """How often each tensor has been written into, where torch counts that."""
    tensors = ((name, x) for name, x in (given or {}).items() if isinstance(x, Tensor) and not x.is_inference())
    return {name: x._version for name, x in tensors}


def _memory(x: Tensor) -> int:
    """Where its numbers lie; 0 for what has no place, and for a tensor of another kind."""
    x = local(x.detach())
    return x.untyped_storage().data_ptr() if type(x) is Tensor else 0


def _is_true(x: Tensor) -> bool:
    """On every process, where it is sharded: an error on some of them leaves the others waiting."""
    return bool(x.full_tensor() if is_dtensor(x) else x)  # pyright: ignore[reportAttributeAccessIssue]


def _is_equal(a: Tensor, b: Tensor) -> bool:
    return _is_true((a == b).all()) if is_dtensor(a) else torch.equal(a, b)


def _mapped(path: str) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError(f"an anchor in {path!r} needs safetensors: pip install safetensors") from error
    try:
        with safe_open(path, framework="pt") as file:
            return _by_name({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise ValueError(f"anchor: {path!r} is damaged, or no safetensors file ({error})") from error


def _by_name(given: Mapping[Any, Any]) -> dict[str, Any]:
    """By the names of the unwrapped model."""
    found: dict[str, Any] = {}
    for name, value in given.items():
        if not isinstance(name, str):
            raise TypeError(f"anchor must have names of parameters as keys, got {name!r}")
        if unwrapped(name) in found:
            raise ValueError(f"anchor has two entries for {unwrapped(name)!r}, under different prefixes; give one")
        found[unwrapped(name)] = value
    return found


def _usable(device: Any) -> torch.device:
    """A device that this machine has and that holds values."""
    try:
        found = torch.empty(0, device=device).device
    except (TypeError, RuntimeError, AssertionError):  # by what torch was built with
        found = torch.device("meta")
    if found.type == "meta":
        raise ValueError(f"anchor_device must be None or a device of this machine, such as 'cpu', got {device!r}")
    return found


def fingerprint(values: Tensor) -> int:
    """64 bits that identify an anchor: they depend on the numbers and their places, not on dtype, format or shards.

    ``sum_i mix(mix(bits of x_i) * (2 i + 1))`` modulo 2^64. Zeros have 0. It finds mistakes, not forgeries: another
    tensor with the same number is easy to make.
    """
    x = whole(values).detach().resolve_neg().flatten()
    total = torch.zeros((), dtype=torch.int64, device=x.device)
    for start in range(0, x.numel(), CHUNK):
        part = x[start : start + CHUNK].double() + 0.0  # equal numbers have equal bits: no negative zeros
        places = torch.arange(start, start + len(part), device=x.device)
        total += _mix(_mix(part.view(torch.int64)).mul_(places.mul_(2).add_(1))).sum()
    return int(total)


def _mix(x: Tensor) -> Tensor:
    """A bijection of 64 bits that keeps 0, in place (multiplications by odd constants wrap around)."""
    for constant, shift in ((-7046029254386353131, 31), (-4658895280553007687, 29)):
        x.mul_(constant)
        x.bitwise_xor_((x >> shift).bitwise_and_((1 << (64 - shift)) - 1))
    return x
