"""Where a parameter's anchor comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from .names import plain

__all__ = ["AnchorSource"]


class AnchorSource:
    """The values just before the first step (``None``), zero (``"zero"``), or given tensors by parameter name."""

    def __init__(self, anchor: Any) -> None:
        if anchor is not None and anchor != "zero" and not isinstance(anchor, Mapping):
            raise ValueError(
                "anchor must be None (the values just before the first step), 'zero', or a dict of tensors by name, "
                f"got {anchor!r}"
            )
        self.zero = isinstance(anchor, str)
        self._given: dict[str, Any] | None = None
        if isinstance(anchor, Mapping):
            self._given = {plain(name): value for name, value in anchor.items()}
        # The state_dict of a module also holds its buffers; in a plain dict an unknown entry is a mistake.
        self._holds_buffers = hasattr(anchor, "_metadata")

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
            if not isinstance(value, Tensor) or not value.is_floating_point() or value.shape != p.shape:
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

    def make(self, param: Tensor, name: Any) -> Tensor | None:
        """A copy of the anchor for ``param``, in the anchor's own dtype; ``None`` for zero."""
        if self.zero:
            return None
        source = param if self._given is None else self._given[plain(str(name))]
        anchor = param.detach().to(source.dtype, copy=True)  # the parameter's device and memory format
        return anchor.copy_(source.detach())
