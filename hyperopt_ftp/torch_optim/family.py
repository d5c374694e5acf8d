"""The anchored family as drop-in classes: one rule each, around any optimizer.

16-bit weights are moved by the base in its own precision: a move smaller than their last bit is lost.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from ..digrap import digrap_rule
from ..optimizers.anchored import Rule
from ..optimizers.cautious_decay import cautious_decay_rule
from ..optimizers.l2sp import l2sp_rule
from ..optimizers.spd import spd_rule
from .anchor_source import AnchorSource
from .ruled import Ruled

__all__ = ["L2SP", "SPD", "CautiousDecay", "DiGraP"]


class L2SP(Ruled):
    """L2-SP (arXiv 1802.01483) around an optimizer: the rule of :func:`~hyperopt_ftp.l2sp`.

    Args:
        base: any :class:`torch.optim.Optimizer` that steps once for each gradient (not LBFGS). Give it
            ``model.named_parameters()`` to exclude by name. Step the wrapper alone.
        strength: pull toward the anchor, >= 0; a group may have its own.
        decoupled: move the weights, by ``lr * strength``, and leave the gradient that ``base`` sees alone.
        anchor, exclude, anchor_dtype, anchor_device, save_anchor: as in :class:`FTPAdamW`.

    Raises:
        TypeError: ``base`` is no optimizer, or LBFGS, or an anchored one.
        ValueError: a strength outside its domain; as :class:`FTPAdamW`.

    >>> import torch, hyperopt_ftp as hft
    >>> w = torch.nn.Parameter(torch.ones(2))
    >>> opt = hft.L2SP(torch.optim.SGD([w], lr=0.1), strength=5.0)
    >>> for _ in range(50):
    ...     opt.zero_grad()
    ...     ((w - 2) ** 2).sum().backward()
    ...     opt.step()
    >>> w.data  # between the anchor, 1, and the minimum, 2
    tensor([1.2857, 1.2857])
    """

    OPTIONS: ClassVar[tuple[str, ...]] = ("strength", "decoupled")
    NUMBERS: ClassVar[tuple[str, ...]] = ("strength",)

    def __init__(
        self,
        base: torch.optim.Optimizer,
        *,
        strength: float = 1e-2,
        decoupled: bool = False,
        anchor: Any = None,
        exclude: Any = (),
        anchor_dtype: torch.dtype | None = None,
        anchor_device: Any = None,
        save_anchor: bool = True,
    ) -> None:
        own = {"strength": strength, "decoupled": decoupled}
        super().__init__(base, own, AnchorSource(anchor, anchor_dtype, anchor_device, save_anchor), exclude)

    def _rule(self, group: dict[str, Any]) -> Rule:
        return l2sp_rule(group["strength"], group["decoupled"])


class CautiousDecay(Ruled):
    """Cautious weight decay (arXiv 2510.12402) toward the anchor: the rule of :func:`~hyperopt_ftp.cautious_decay`.

    Args:
        base: as in :class:`L2SP`; leave its weight decay at 0.
        strength: decay toward the anchor, times the learning rate, >= 0; a group may have its own.
        anchor, exclude, anchor_dtype, anchor_device, save_anchor: as in :class:`FTPAdamW`. ``anchor="zero"`` is the
            paper's decay.

    Raises:
        TypeError, ValueError: as :class:`L2SP`.

    >>> import torch, hyperopt_ftp as hft
    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> opt = hft.CautiousDecay(torch.optim.AdamW([w], lr=0.1, weight_decay=0.0), strength=0.1)
    >>> (w - 1).square().sum().backward()
    >>> opt.step()
    >>> w.data
    tensor([0.1000, 0.1000])
    """

    OPTIONS: ClassVar[tuple[str, ...]] = ("strength",)
    NUMBERS: ClassVar[tuple[str, ...]] = ("strength",)

    def __init__(
        self,
        base: torch.optim.Optimizer,
        *,
        strength: float = 1e-2,
        anchor: Any = None,
        exclude: Any = (),
        anchor_dtype: torch.dtype | None = None,
        anchor_device: Any = None,
        save_anchor: bool = True,
    ) -> None:
        source = AnchorSource(anchor, anchor_dtype, anchor_device, save_anchor)
        super().__init__(base, {"strength": strength}, source, exclude)

    def _rule(self, group: dict[str, Any]) -> Rule:
        return cautious_decay_rule(group["strength"])


class SPD(Ruled):
    """Selective Projection Decay (arXiv 2411.01713) around an optimizer: the rule of :func:`~hyperopt_ftp.spd`.

    Args:
        base: as in :class:`L2SP`.
        strength: the paper's lambda, not times the learning rate, >= 0; a group may have its own.
        anchor, exclude, anchor_dtype, anchor_device, save_anchor: as in :class:`FTPAdamW`. For adapters (LoRA)
            ``anchor="zero"``, which takes no memory.

    Raises:
        TypeError, ValueError: as :class:`L2SP`.

    >>> import torch, hyperopt_ftp as hft
    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> opt = hft.SPD(torch.optim.SGD([w], lr=0.1, momentum=0.9), strength=1.0)
    >>> for _ in range(100):
    ...     opt.zero_grad()
    ...     ((w - 1) ** 2).sum().backward()
    ...     opt.step()
    >>> bool((w - 1).abs().max() < 1e-2)
    True
    """

    OPTIONS: ClassVar[tuple[str, ...]] = ("strength",)
    NUMBERS: ClassVar[tuple[str, ...]] = ("strength",)

    def __init__(
        self,
        base: torch.optim.Optimizer,
        *,
        strength: float = 1.0,
        anchor: Any = None,
        exclude: Any = (),
        anchor_dtype: torch.dtype | None = None,
        anchor_device: Any = None,
        save_anchor: bool = True,
    ) -> None:
        source = AnchorSource(anchor, anchor_dtype, anchor_device, save_anchor)
        super().__init__(base, {"strength": strength}, source, exclude)

    def _rule(self, group: dict[str, Any]) -> Rule:
        return spd_rule(group["strength"])


class DiGraP(Ruled):
    """Directional Gradient Projection (arXiv 2502.15895) around an optimizer: the rule of :func:`~hyperopt_ftp.digrap`.

    State beside the anchor: ``slope`` (the derivative of the last step with respect to omega), ``omega``, its Adam
    moments ``omega_exp_avg`` and ``omega_exp_avg_sq``, and ``omega_step``.

    Args:
        base: as in :class:`L2SP`; it sees the projected gradient.
        omega_lr: step of omega, the strength of a tensor's projection, which is learned in [0, 1]; a group may have
            its own.
        gradient: ``"paper"`` or ``"exact"``, see :func:`~hyperopt_ftp.digrap`.
        anchor, exclude, anchor_dtype, anchor_device, save_anchor: as in :class:`FTPAdamW`.

    Raises:
        TypeError, ValueError: as :class:`L2SP`.

    >>> import torch, hyperopt_ftp as hft
    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> opt = hft.DiGraP(torch.optim.SGD([w], lr=0.1, momentum=0.9), omega_lr=0.1)
    >>> for _ in range(10):
    ...     opt.zero_grad()
    ...     ((w - 1) ** 2).sum().backward()
    ...     opt.step()
    >>> list(opt.omegas())
    [0]
    """

    HELD: ClassVar[tuple[str, ...]] = ("slope", "omega", "omega_exp_avg", "omega_exp_avg_sq", "omega_step")
    WHOLE: ClassVar[frozenset[str]] = frozenset({"slope"})
    COUNTS: ClassVar[frozenset[str]] = frozenset({"omega_step"})
    _OWN: ClassVar[frozenset[str]] = Ruled._OWN | {*HELD}
    OPTIONS: ClassVar[tuple[str, ...]] = ("omega_lr", "gradient")
    NUMBERS: ClassVar[tuple[str, ...]] = ("omega_lr",)

    def __init__(
        self,
        base: torch.optim.Optimizer,
        *,
        omega_lr: float = 1e-2,
        gradient: str = "paper",
        anchor: Any = None,
        exclude: Any = (),
        anchor_dtype: torch.dtype | None = None,
        anchor_device: Any = None,
        save_anchor: bool = True,
    ) -> None:
        own = {"omega_lr": omega_lr, "gradient": gradient}
        super().__init__(base, own, AnchorSource(anchor, anchor_dtype, anchor_device, save_anchor), exclude)

    def _rule(self, group: dict[str, Any]) -> Rule:
        return digrap_rule(group["omega_lr"], group["gradient"])

    def omegas(self) -> dict[Any, float]:
        """Strength of each constrained parameter that has made a step, by name (or index), in [0, 1]."""
        return self._held("omega")
