"""Fast Trainable Projection around any ``torch.optim`` optimizer."""

from __future__ import annotations

from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..kernels.layers import Amp, choose
from .anchor_source import AnchorSource
from .around import Around
from .balls import Balls, ball
from .executions import Part, alike, project_, radii_

__all__ = ["FTP"]


class FTP(Around, Balls):
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

    OPTIONS: ClassVar[tuple[str, ...]] = ("radius_lr", "kappa", "norm", "gradient")

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
        own = {"radius_lr": radius_lr, "kappa": kappa, "norm": norm, "gradient": gradient}
        super().__init__(base, own, AnchorSource(anchor, anchor_dtype, anchor_device, save_anchor), exclude)

    def _step(self) -> None:
        fresh, before = self._fresh(), []
        work: dict[str, list[Part]] = {}
        groups: dict[str, list[dict[str, Any]]] = {}  # of each part
        try:
            for group, execution, layers in self._layers():
                self._ran[0] = execution
                held = choose(layers, [i for i, radius in enumerate(layers.radii) if radius.numel()])
                amp = Amp(bool(group.get("maximize", False)))
                for part in alike(held) if held.weights else ():
                    work.setdefault(execution, []).append(Part(part, None, ball(group), amp))
                    groups.setdefault(execution, []).append(group)
            before = _radius_states(work)
            packed = {execution: self._radii(execution, parts, groups[execution]) for execution, parts in work.items()}
            self.base.step()
        except BaseException:
            for column, values in before:
                torch._foreach_copy_(column, list(values.unbind()))
            self._take_back(fresh)
            raise
        for execution, parts in work.items():
            project_(execution, parts, packed[execution])
        self._join_waiting()

    def _radii(self, execution: str, parts: list[Part], groups: list[dict[str, Any]]) -> list[Tensor]:
        """New radii of each part's layers, before the clip."""
        return radii_(execution, parts)

    def _init_group(self, group: dict[str, Any], *columns: list[Tensor]) -> None:
        self._begin_base(group)
        super()._init_group(group, *columns)


def _radius_states(work: dict[str, list[Part]]) -> list[tuple[list[Tensor], Tensor]]:
    """What :func:`radii_` changes, and its values now."""
    columns = [
        column
        for part in chain.from_iterable(work.values())
        for column in (part.layers.radius_exp_avgs, part.layers.radius_exp_avg_sqs, part.layers.radius_steps)
    ]
    return [(column, torch.stack(column)) for column in columns if column]
