"""Where a parameter's anchor comes from, and how it is kept."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..kernels.layers import NOTHING
from ..tree import working
from .names import plain

__all__ = ["AnchorSource"]

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class AnchorSource:
    """The values just before the first step, zero, given tensors by name, or those of a safetensors file.

    Args:
        anchor: ``None``, ``"zero"``, a dict of tensors by parameter name, or the path of a ``.safetensors`` file, which
            is mapped into memory, not read, and takes no room in the optimizer's state.
        dtype: keep anchors in this dtype where that changes no value, else as they are.
        device: keep anchors on this device (``"cpu"``); a step fetches them. ``None``: beside their parameters.
    """

    def __init__(self, anchor: Any, dtype: torch.dtype | None = None, device: Any = None) -> None:
        path = isinstance(anchor, (str, os.PathLike)) and str(anchor).endswith(".safetensors")
        if anchor is not None and anchor != "zero" and not isinstance(anchor, Mapping) and not path:
            raise ValueError(
                "anchor must be None (the values just before the first step), 'zero', a dict of tensors by name, or "
                f"the path of a .safetensors file, got {anchor!r}"
            )
        if dtype is not None and dtype not in DTYPES:
            raise ValueError(f"anchor_dtype must be None or one of {DTYPES}, got {dtype!r}")
        self.dtype = dtype
        self.device = None if device is None else torch.device(device)
        self.zero = isinstance(anchor, str) and anchor == "zero"
        self.path = str(anchor) if path else None
        self._given: dict[str, Any] | None = None
        if self.path is not None:
            self._given = _mapped(self.path)
        elif isinstance(anchor, Mapping):
            self._given = {plain(name): value for name, value in anchor.items()}
        # A file or the state_dict of a module also holds buffers; in a plain dict an unknown entry is a mistake.
        self._holds_buffers = self.path is not None or hasattr(anchor, "_metadata")

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        return state if self.path is None else state | {"_given": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.path is not None:
            self._given = _mapped(self.path)

    def check(self, names: Sequence[str] | None, params: Sequence[Tensor], constrained: Sequence[bool]) -> None:
        """``ValueError`` unless there is a fitting anchor for each constrained parameter."""
        if self._given is None:
            return
        if names is None:
            raise ValueError("an anchor by name needs names: pass model.named_parameters()")
        for name, p, is_constrained in zip(names, params, constrained, strict=True):
            if not is_constrained:
                continue
            value = self._given.get(plain(name))
            if value is None:
                raise ValueError(f"anchor has no entry for the parameter {name!r}; give one, or exclude the parameter")
            if not isinstance(value, Tensor) or value.dtype not in DTYPES or value.shape != p.shape:
                got = f"{tuple(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"anchor entry {name!r} must be a floating-point tensor of shape {tuple(p.shape)}, got {got}"
                )

    def check_no_extra(self, names: Sequence[Any]) -> None:
        if self._given is None or self._holds_buffers:
            return
        extra = sorted(self._given.keys() - {plain(str(name)) for name in names})
        if extra:
            raise ValueError(
                f"anchor has entries {extra[:5]} that are not parameters of this optimizer; pass module.state_dict() "
                "as it is, or parameters only: {n: weights[n] for n, _ in model.named_parameters()}"
            )

    def start(self, p: Tensor, name: Any, state: dict[str, Any]) -> None:
        """Put the anchor into a parameter's state, where it belongs there."""
        if self.zero or self._in_file(p, name):
            return
        source = p if self._given is None else self._given[plain(str(name))]
        source = source.detach().resolve_neg()
        dtype = source.dtype
        if dtype == torch.float64:  # arithmetic is in the working precision of the weights anyway
            dtype = working(p.detach()).dtype
            source = source.to(dtype)
        if (
            self.dtype is not None
            and self.dtype != torch.float64
            and torch.equal(source.to(self.dtype).to(dtype), source)
        ):
            dtype = self.dtype
        anchor = torch.empty_like(p.detach(), dtype=dtype, device=self.device or p.device)
        state["anchor"] = anchor.copy_(source)  # in the parameter's memory format

    def of(self, p: Tensor, name: Any, state: dict[str, Any]) -> Tensor:
        """The anchor of a parameter that has begun; empty for zero."""
        if "anchor" in state:
            return state["anchor"]
        if self._given is not None and self._in_file(p, name):
            return self._given[plain(str(name))]
        return NOTHING

    def _in_file(self, p: Tensor, name: Any) -> bool:
        """A mapped anchor serves as it lies, unless its layout is another, or its dtype wider than any work on it."""
        if self.path is None or self._given is None:
            return False
        mapped = self._given[plain(str(name))]
        return mapped.stride() == p.stride() and (mapped.dtype != torch.float64 or p.dtype == torch.float64)


def _mapped(path: str) -> dict[str, Tensor]:
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise ImportError(f"an anchor in {path!r} needs safetensors: pip install safetensors") from error
    if not os.path.isfile(path):
        raise FileNotFoundError(f"anchor: there is no file {path!r}")
    with safe_open(path, framework="pt") as file:
        return {plain(name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
