"""The optimizer that does nothing."""

from __future__ import annotations

from typing import Any

from ..calls import explained
from ..hparams import complete
from ..types import Optimizer
from .leafwise import check_grads, check_params


@explained()
def frozen() -> Optimizer[tuple[()]]:
    """Leave the weights as they are: ``W <- W``. It has no hparams and no state, and ignores gradients.

    Use it for a part of a :func:`partition`.

    >>> import torch, hyperopt_ftp as hft
    >>> opt = hft.partition({"train": hft.sgd(lr=1.0), "keep": hft.frozen()}, {"head.*": "train", "*": "keep"})
    >>> params = {"head.w": torch.ones(2), "body.w": torch.ones(2)}
    >>> opt.update(params, opt.init(params), params)[0]
    {'head.w': tensor([0., 0.]), 'body.w': tensor([1., 1.])}
    """

    def init(params: Any, hparams: Any = None) -> tuple[()]:
        check_params(params)
        complete(hparams, {})
        return ()

    def update(grads: Any, state: tuple[()], params: Any, hparams: Any = None) -> tuple[Any, tuple[()]]:
        check_grads(grads, params)
        complete(hparams, {})
        return params, ()

    return Optimizer(init, update, {})
