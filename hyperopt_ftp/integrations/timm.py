"""timm: FTP's optimizers in its registry, and the head of a model unconstrained."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..torch_optim.classes.ftp_adamw import FTPAdamW
from ..torch_optim.classes.ftp_sgd import FTPSGD
from ..types import Excludes

__all__ = ["classifier", "create_optimizer", "register"]

# No "_" in a name: timm looks up what comes after the last one. "has_..." tell it which options it may pass on; its own
# "sgd" has Nesterov's momentum too.
_INFOS: dict[str, dict[str, Any]] = {
    "ftpadamw": {"opt_class": FTPAdamW, "has_betas": True, "description": "AdamW with Fast Trainable Projection"},
    "ftpsgd": {
        "opt_class": FTPSGD,
        "has_eps": False,
        "has_momentum": True,
        "description": "SGD (Nesterov) with Fast Trainable Projection",
        "defaults": {"nesterov": True},
    },
}

# Options of create_optimizer_v2 that say how it groups the parameters of a model.
_GROUPING = ("weight_decay", "filter_bias_and_bn", "layer_decay", "layer_decay_min_scale", "layer_decay_no_opt_scale")


def register() -> None:
    """Put ``ftpadamw`` and ``ftpsgd`` into timm's registry. A second call does nothing.

    Then ``timm.optim.create_optimizer_v2(model, opt="ftpadamw", lr=1e-3, exclude=model.get_classifier())`` works, with
    ``layer_decay``, weight decay that spares biases and norms, and every option of the class as a keyword. The head is
    unconstrained only if ``exclude`` says so; :func:`create_optimizer` does this for you.

    ``ftpsgd`` has momentum 0.9 and Nesterov by default, as timm's ``sgd``.

    Raises:
        ImportError: timm is not installed.
        RuntimeError: timm has another optimizer of one of the names. Nothing is registered then.
    """
    from timm.optim import OptimInfo, get_optimizer_info, list_optimizers
    from timm.optim._optim_factory import default_registry  # the only way in

    known = {name: get_optimizer_info(name).opt_class for name in list_optimizers() if name in _INFOS}
    taken = {name: found for name, found in known.items() if found is not _INFOS[name]["opt_class"]}
    if taken:
        raise RuntimeError(
            f"timm's registry has other optimizers of these names: {taken}; the names must be free. Build hft.FTPAdamW "
            "or hft.FTPSGD directly, of groups made by timm.optim.param_groups_layer_decay"
        )
    for name in _INFOS.keys() - known.keys():
        default_registry.register(OptimInfo(name=name, **_INFOS[name]))


def classifier(model: nn.Module) -> list[nn.Parameter]:
    """The trainable parameters of the head, ``model.get_classifier()``: one module, or several for distilled models.

    VOLO's ``model.aux_head`` is included. The list is empty if there is no head (``num_classes=0``) or if it is frozen.

    Raises:
        TypeError: ``model`` has no ``get_classifier``, or one that fails.

    >>> import torch
    >>> class Model(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.body, self.fc = torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)
    ...     def get_classifier(self):
    ...         return self.fc
    >>> [tuple(p.shape) for p in classifier(Model())]
    [(2, 4), (2,)]
    """
    get = getattr(model, "get_classifier", None)
    if get is None:
        raise TypeError(
            f"the head is found by get_classifier(), which timm's models have, and a {type(model).__name__} has not; "
            "pass exclude= the head's module, or () to hold every parameter near its anchor"
        )
    if getattr(model, "num_classes", None) == 0:
        return []
    try:
        found = get()
    except AttributeError as error:
        raise TypeError(
            f"{type(model).__name__}.get_classifier() fails: {error}; pass exclude= the head's module"
        ) from error
    heads = [*(found if isinstance(found, (list, tuple)) else [found]), getattr(model, "aux_head", None)]
    return [p for head in heads if isinstance(head, nn.Module) for p in head.parameters() if p.requires_grad]


def create_optimizer(
    model: nn.Module, opt: str = "ftpadamw", *, exclude: Excludes = None, **options: Any
) -> FTPAdamW | FTPSGD:
    """``timm.optim.create_optimizer_v2`` with an unconstrained head.

    Args:
        model: a model of timm, without the wrappers of DDP or ``torch.compile``.
        opt: ``"ftpadamw"`` or ``"ftpsgd"``.
        exclude: as in :class:`~hyperopt_ftp.FTPAdamW`, but ``None`` excludes :func:`classifier`. Use ``()`` for a head
            that was trained for the same classes.
        options: of ``create_optimizer_v2`` (``lr``, ``weight_decay``, ``layer_decay``, ...) and of the class.

    Returns:
        The optimizer, with timm's groups and the names of their parameters. With ``layer_decay`` the groups have an
        ``lr_scale``, which only timm's schedulers apply, as with every optimizer.

    Raises:
        ValueError: another ``opt``, an option outside its domain, an ``exclude`` that matches nothing.
        TypeError: no ``exclude``, and a model without ``get_classifier``.
        ImportError: timm is not installed.
    """
    if opt.lower() not in _INFOS:
        raise ValueError(
            f"opt must be one of {sorted(_INFOS)}, got {opt!r}; any other name, also of these within Lookahead, is for "
            "timm.optim.create_optimizer_v2, after register()"
        )
    exclude = classifier(model) if exclude is None else exclude
    register()
    from timm.optim import create_optimizer_v2

    if options.get("param_group_fn") is None:
        grouping = {name: options.pop(name) for name in _GROUPING if name in options}
        groups = create_optimizer_v2(model, "sgd", lr=0.0, **grouping).param_groups
        options["param_group_fn"] = lambda model: _named(model, groups)
    return create_optimizer_v2(model, opt=opt, exclude=exclude, **options)  # pyright: ignore[reportReturnType]


def _named(model: nn.Module, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = {p: name for name, p in model.named_parameters()}
    return [
        {"params": [(names[p], p) for p in group["params"]]}
        | {key: group[key] for key in ("weight_decay", "lr_scale") if key in group}
        for group in groups
    ]
