"""Fast Trainable Projection around any ``torch.optim`` optimizer."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ..kernels.layers import Amp, choose
from .anchor_source import AnchorSource
from .anchored import Anchored, ball, run_closure
from .executions import Part, alike, project_, radii_

__all__ = ["FTP"]


class FTP(Anchored):
    """Fast Trainable Projection (arXiv 2310.19182) around an optimizer that is given, whatever its rule is.

    The rule of :class:`FTPAdamW`, where the displacement ``d`` is what ``base.step()`` does to the weights. Groups and
    state are shared with ``base``: LR schedulers and ``state_dict`` work on the wrapper. Step the wrapper alone.

    Args:
        base: any :class:`torch.optim.Optimizer` that steps once for each gradient (not LBFGS). Give it
            ``model.named_parameters()`` to exclude by name.
        anchor, exclude, radius_lr, kappa, norm, gradient, anchor_dtype, anchor_device, save_anchor: as in
            :class:`FTPAdamW`.

    Raises:
        TypeError: ``base`` is no optimizer, or LBFGS (which evaluates the loss several times a step), or FTP already.
        ValueError: as :class:`FTPAdamW`.

    The closure is evaluated by the wrapper, before the base's step. 16-bit weights are moved by ``base`` in its own
    precision: a move smaller than their last bit is lost. c stays the master copy of weights that were not moved.

    >>> import torch, hyperopt_ftp as hft
    >>> w = torch.nn.Parameter(torch.zeros(2, 3))
    >>> opt = hft.FTP(torch.optim.RMSprop([w], lr=0.1))
    >>> for _ in range(3):
    ...     opt.zero_grad()
    ...     ((w - 1) ** 2).sum().backward()
    ...     opt.step()
    >>> {name: round(radius, 4) for name, radius in opt.radii().items()}
    {0: 0.016}
    """

    KEPT = (*Anchored.KEPT, "base", "_base_columns", "_waiting")

    def __init__(
        self,
        base: torch.optim.Optimizer,
        *,
        anchor: Any = None,
        exclude: Any = (),
        radius_lr: float = 1e-2,
        kappa: float = 1.0,
        norm: str = "mars",
        gradient: str = "paper",
        anchor_dtype: torch.dtype | None = None,
        anchor_device: Any = None,
        save_anchor: bool = True,
    ) -> None:
        if not isinstance(base, torch.optim.Optimizer) or isinstance(base, (torch.optim.LBFGS, Anchored)):
            got = f"the class {base.__name__} itself" if isinstance(base, type) else type(base).__name__
            raise TypeError(
                "FTP wraps a torch.optim.Optimizer that steps once for each gradient (not LBFGS, not an FTP one), "
                f"got {got}"
            )
        own = {"radius_lr": radius_lr, "kappa": kappa, "norm": norm, "gradient": gradient}
        taken = [name for name in (*own, "constrained") if name in base.defaults]
        if taken:
            raise ValueError(f"FTP keeps {taken} in the groups, where {type(base).__name__} has options of these names")
        self.base = base
        self._base_columns = _columns_of(base)
        self._waiting: dict[Tensor, dict[str, Any]] = {}
        groups = [{**group} for group in base.param_groups]
        for group in groups:
            if "param_names" in group:
                group["params"] = list(zip(group["param_names"], group["params"], strict=True))
        source = AnchorSource(anchor, anchor_dtype, anchor_device, save_anchor)
        super().__init__(groups, {**base.defaults, **own}, source, exclude)
        self._share(base.state)

    def _share(self, state: Any) -> None:
        self.base.param_groups = self.param_groups
        self.state = self.base.state = self._shared = state

    def _append_group(self, group: dict[str, Any]) -> None:
        if self.param_groups is not self.base.param_groups:  # under construction
            return super()._append_group(group)
        if isinstance(group, dict):
            for name in ("radius_lr", "kappa", "norm", "gradient"):
                group.setdefault(name, self.defaults[name])
        self.base.add_param_group(group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of the base on every parameter that has a gradient, then the projection.

        Args:
            closure: re-evaluates the model and returns the loss.

        Raises:
            RuntimeError: a sparse or complex gradient (before anything has changed).
        """
        if self.base.param_groups is not self.param_groups or self.base.state is not self._shared:
            raise RuntimeError(
                "the base's state was loaded without its wrapper; call load_state_dict on FTP(...) itself"
            )
        loss = run_closure(closure)
        if self.state is not self._shared:  # another one was swapped in, for a while or for good
            self._share(self.state)
        fresh = {p: dict(self.state.get(p, {})) for p in self._stepped() if "radius" not in self.state.get(p, ())}
        work: dict[str, list[Part]] = {}
        for group, execution, layers in self._layers():
            self.execution = execution
            held = choose(layers, [i for i, radius in enumerate(layers.radii) if radius.numel()])
            amp = Amp(bool(group.get("maximize", False)))
            if held.weights:
                work.setdefault(execution, []).extend(Part(part, None, ball(group), amp) for part in alike(held))
        before = _radius_states(work)
        packed = {execution: radii_(execution, parts) for execution, parts in work.items()}
        try:
            self.base.step()
        except BaseException:
            self._take_back(before, fresh)
            raise
        for execution, parts in work.items():
            project_(execution, parts, packed[execution])
        for p, state in self._waiting.items():
            self.state[p].update(state)
        self._waiting.clear()
        return loss

    def _stepped(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"] if p.grad is not None]

    def _take_back(self, before: list[tuple[list[Tensor], Tensor]], fresh: dict[Tensor, dict[str, Any]]) -> None:
        """The base has refused its step: what was done for it is undone."""
        for column, values in before:
            torch._foreach_copy_(column, list(values.unbind()))
        for p, state in fresh.items():
            self.state[p].clear()
            self.state[p].update(state)
            if not state:
                del self.state[p]
        self._waiting.clear()

    def _init_group(self, group: dict[str, Any], *columns: list[Tensor]) -> None:
        # Bases take an empty state for a first step: the base's state is made before ours.
        if self._base_columns is not None:
            self.base._init_group(group, *([] for _ in range(self._base_columns)))  # pyright: ignore
        super()._init_group(group, *columns)

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


def _radius_states(work: dict[str, list[Part]]) -> list[tuple[list[Tensor], Tensor]]:
    """What :func:`radii_` changes, and its values now."""
    columns = [
        column
        for part in chain.from_iterable(work.values())
        for column in (part.layers.radius_exp_avgs, part.layers.radius_exp_avg_sqs, part.layers.radius_steps)
    ]
    return [(column, torch.stack(column)) for column in columns if column]


def _columns_of(base: torch.optim.Optimizer) -> int | None:
    """How many lists torch's method that makes a group's state fills; ``None`` where the base has no such method."""
    method = getattr(base, "_init_group", None)
    return None if method is None else len(inspect.signature(method).parameters) - 1
