"""Fast Trainable Projection around any ``torch.optim`` optimizer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..types import Optimizer
from .anchored import Anchored, run_closure
from .layer import Layer, run_pure
from .multi_tensor import buckets, project, step_radii, store, working_weights

__all__ = ["FTP"]


class FTP(Anchored):
    """Fast Trainable Projection (arXiv 2310.19182) around an optimizer that is given, whatever its rule is.

    The rule of :class:`FTPAdamW`, where the displacement ``d`` is what ``base.step()`` does to the weights. Groups and
    state are shared with ``base``: LR schedulers and ``state_dict`` work on the wrapper. Step the wrapper alone.

    Args:
        base: any :class:`torch.optim.Optimizer` that steps once for each gradient (not LBFGS). Give it
            ``model.named_parameters()`` to exclude by name.
        anchor, exclude, radius_lr, kappa, norm, gradient: as in :class:`FTPAdamW`.

    Raises:
        TypeError: ``base`` is no optimizer, or LBFGS (which evaluates the loss several times a step), or FTP already.
        ValueError: as :class:`FTPAdamW`.

    The closure is evaluated by the wrapper, before the base's step. 16-bit weights are moved by ``base`` in its own
    precision; there is no master copy.

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

    STEP = "ftp_step"
    KEPT = (*Anchored.KEPT, "base")

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
    ) -> None:
        if not isinstance(base, torch.optim.Optimizer) or isinstance(base, (torch.optim.LBFGS, Anchored)):
            raise TypeError(
                "FTP wraps a torch.optim.Optimizer that steps once for each gradient (not LBFGS, not an FTP one), "
                f"got {type(base).__name__}"
            )
        own = {"radius_lr": radius_lr, "kappa": kappa, "norm": norm, "gradient": gradient}
        self.base = base
        groups = [{**group} for group in base.param_groups]
        for group in groups:
            if "param_names" in group:
                group["params"] = list(zip(group["param_names"], group["params"], strict=True))
        super().__init__(groups, {**base.defaults, **own}, anchor, exclude)
        self._share(base.state)

    def _share(self, state: Any) -> None:
        self.base.param_groups = self.param_groups
        self.state = self.base.state = state

    def _append_group(self, group: dict[str, Any]) -> None:
        if self.param_groups is not self.base.param_groups:  # under construction
            return super()._append_group(group)
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
        loss = run_closure(closure)
        after: list[Callable[[], None]] = []
        for group, layers in self._layers():
            held = [layer for layer in layers if layer.constrained]
            for layer in held:
                self._start(layer, group)
                layer.state[self.STEP] += 1
            self.execution = self._pick_execution(group)
            if self.execution == "single":
                # The base may use up the gradient; the pure step comes after it.
                after += [partial(self._project_pure, layer._replace(grad=layer.grad.clone()), group) for layer in held]
            else:
                for bucket in buckets(held):
                    packed = step_radii(bucket, group, self._steps(bucket, group))
                    after.append(partial(self._project_foreach, bucket, packed, group["norm"]))
        self.base.step()
        for project_layers in after:
            project_layers()
        return loss

    def _project_pure(self, layer: Layer, group: dict[str, Any]) -> None:
        run_pure(_MOVED, (), layer, layer.state[self.STEP].to(torch.int64) - 1, group)
        self._attach([layer])

    def _project_foreach(self, layers: list[Layer], packed: Tensor, norm: str) -> None:
        weights = working_weights(layers)
        project(layers, weights, packed, norm)
        store(layers, weights)
        self._attach(layers)

    def _attach(self, layers: list[Layer]) -> None:
        """New state becomes visible after the base's step only: bases take an empty state for a first step."""
        for layer in layers:
            self.state[layer.param].update(layer.state)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.base.__setstate__({"state": self.state, "param_groups": self.param_groups})
        self._share(self.state)


#: A base whose move is already in the weights.
_MOVED = Optimizer(lambda params, hparams=None: (), lambda grads, state, params, hparams=None: (params, state), {})
