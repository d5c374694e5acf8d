"""Modules of a network, by their names, that go through :func:`~hyperopt_ftp.remat` from now on."""

from __future__ import annotations

from types import MethodType
from typing import Any

from torch import nn

from ...calls import explained
from ...optimizers.patterns import matcher, no_match
from .remat import remat


@explained('remat_layers(net, "encoder.layer.*")')
def remat_layers(net: nn.Module, pattern: str) -> list[str]:
    """Let modules of a network go through :func:`remat`, in place: its code needs no change.

    Of each only the arguments are kept for derivatives of first and second order. Parameters keep their names, and a
    copy of the network has what it has. ``del net.encoder.layer[0].forward`` takes it back for one module.

    Args:
        net: a module, such as a model of Hugging Face or timm.
        pattern: of names in ``net.named_modules()``: a name, or one that they lie under, or a glob pattern
            (``"encoder.layer.*"``, ``"blocks.*"``), where ``*`` matches dots too. Of modules within each other the
            outer one is taken that can be called: a list of modules stands for its entries, an ``nn.Sequential`` for
            itself.

    Returns:
        The names of the modules.

    Raises:
        ValueError: no module that can be called matches; one whose ``forward`` was replaced before; a network that
            checkpoints activations itself (``gradient_checkpointing_enable()`` of Hugging Face,
            ``set_grad_checkpointing()`` of timm), which saves nothing of a second derivative.

    >>> import torch, hyperopt_ftp as hft
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Tanh()))
    >>> hft.remat_layers(net, "1")
    ['1']
    >>> type(net(torch.ones(3, 2)).grad_fn).__name__
    'RematBackward'
    """
    for name, module in net.named_modules():
        # The first is Hugging Face's flag, the second timm's.
        if getattr(module, "gradient_checkpointing", False) or getattr(module, "grad_checkpointing", False):
            raise ValueError(
                f"{name or 'the network'} checkpoints activations itself, which saves nothing of a second derivative: "
                "switch it off by gradient_checkpointing_disable() (Hugging Face) or set_grad_checkpointing(False) "
                "(timm); remat_layers is in its place"
            )
    matches, found = matcher(pattern), dict[str, nn.Module]()
    for name, module in net.named_modules():  # outer modules come first
        callable_ = type(module).forward is not nn.Module.forward
        if callable_ and matches(name) and not any(name.startswith(f"{outer}.") or outer == "" for outer in found):
            found[name] = module
    if not found:
        raise no_match("remat_layers:", pattern, [name for name, _ in net.named_modules() if name], "module")
    for name, module in found.items():
        if "forward" in vars(module):
            raise ValueError(f"the forward of {name or 'the network'} was replaced before, by remat_layers or others")
    for module in found.values():
        module.forward = MethodType(forward, module)  # of which a copy of the module has its own
    return [*found]


def forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Named as what it replaces: a pickle looks it up by that."""
    return remat(MethodType(type(module).forward, module), *args, **kwargs)
