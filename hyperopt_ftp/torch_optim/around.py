"""What the classes around an optimizer that is given share: its groups and its state are theirs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from .anchor_source import AnchorSource
from .anchored import Anchored, run_closure

__all__ = ["Around"]


class Around(Anchored):
    """Wraps ``base``, any :class:`torch.optim.Optimizer` that steps once for each gradient (not LBFGS).

    Groups and state are shared with ``base``: LR schedulers and ``state_dict`` work on the wrapper.
    """

    KEPT: ClassVar[tuple[str, ...]] = (*Anchored.KEPT, "base", "_base_columns", "_waiting")

    def __init__(
        self, base: torch.optim.Optimizer, options: dict[str, Any], anchor: AnchorSource, exclude: Any
    ) -> None:
        if not isinstance(base, torch.optim.Optimizer) or isinstance(base, (torch.optim.LBFGS, Anchored)):
            got = f"the class {base.__name__} itself" if isinstance(base, type) else type(base).__name__
            raise TypeError(
                f"{type(self).__name__} wraps a torch.optim.Optimizer that steps once for each gradient (not LBFGS, "
                f"not an anchored one), got {got}"
            )
        taken = [name for name in (*options, "constrained") if name in base.defaults]
        if taken:
            raise ValueError(
                f"{type(self).__name__} keeps {taken} in the groups, where {type(base).__name__} has options of these "
                "names"
            )
        self.base = base
        self._base_columns = _columns_of(base)
        self._waiting: dict[Tensor, dict[str, Any]] = {}
        groups = [{**group} for group in base.param_groups]
        for group in groups:
            if "param_names" in group:
                group["params"] = list(zip(group["param_names"], group["params"], strict=True))
        super().__init__(groups, {**base.defaults, **options}, anchor, exclude)
        self._share(base.state)

    def _share(self, state: Any) -> None:
        self.base.param_groups = self.param_groups
        self.state = self.base.state = self._shared = state

    def _title(self) -> str:
        return f"{super()._title()}({type(self.base).__name__})"

    def _append_group(self, group: dict[str, Any]) -> None:
        if self.param_groups is not self.base.param_groups:  # under construction
            return super()._append_group(group)
        if isinstance(group, dict):
            for name in self.OPTIONS:
                group.setdefault(name, self.defaults[name])
        self.base.add_param_group(group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of the base on every parameter that has a gradient, with what the class does before and after it.

        Args:
            closure: re-evaluates the model and returns the loss.

        Raises:
            RuntimeError: a sparse or complex gradient (before anything has changed).
        """
        if self.base.param_groups is not self.param_groups or self.base.state is not self._shared:
            raise RuntimeError(
                f"the base's state was loaded without its wrapper; call load_state_dict on {type(self).__name__}(...) "
                "itself"
            )
        loss = run_closure(closure)
        if self.state is not self._shared:  # another one was swapped in, for a while or for good
            self._share(self.state)
        self._step()
        return loss

    def _step(self) -> None:
        """Steps the base, once; what it refuses is undone."""
        raise NotImplementedError

    def _fresh(self) -> dict[Tensor, dict[str, Any]]:
        """State, as it is now, of parameters that are about to begin."""
        stepped = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        return {p: dict(self.state.get(p, {})) for p in stepped if not self._begun(self.state.get(p, {}))}

    def _take_back(self, fresh: dict[Tensor, dict[str, Any]]) -> None:
        """The base has refused its step: what was begun for it is undone."""
        for p, state in fresh.items():
            self.state[p].clear()
            self.state[p].update(state)
            if not state:
                del self.state[p]
        self._waiting.clear()

    def _begin_base(self, group: dict[str, Any]) -> None:
        """Bases take an empty state for a first step: the base's state is made before ours."""
        if self._base_columns is not None:
            self.base._init_group(group, *([] for _ in range(self._base_columns)))  # pyright: ignore

    def _join_waiting(self) -> None:
        """After the base's step."""
        for p, state in self._waiting.items():
            self.state[p].update(state)
        self._waiting.clear()

    def _state_of(self, p: Tensor) -> dict[str, Any]:
        if self._base_columns is None and not self.state.get(p):
            return self._waiting.setdefault(p, {})  # until the base has made its own, in its step
        return self.state[p]

    def _check_base(self, state: dict[str, Any]) -> None:
        twin = object.__new__(type(self.base))
        twin.__dict__.update(self.base.__dict__)
        try:
            twin.__setstate__(dict(state))
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise ValueError(
                f"the checkpoint does not suit {type(self.base).__name__}, which cannot load it ({error!r}); was it "
                "made around another base?"
            ) from error

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.base.__setstate__({"state": self.state, "param_groups": self.param_groups})
        self._share(self.state)


def _columns_of(base: torch.optim.Optimizer) -> int | None:
    """How many lists torch's method that makes a group's state fills; ``None`` where the base has no such method."""
    method = getattr(base, "_init_group", None)
    return None if method is None else len(inspect.signature(method).parameters) - 1
