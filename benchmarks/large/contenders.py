"""Who takes part: a plain loop, other libraries, and the library with more or less kept of each step.

Each has the same hypergradient: in the learning rates of parts of the network, and in the weights of examples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import hyperopt_ftp as hft
from hyperopt_ftp.hyper import Strategy

from .peers import by_higher, by_torchopt
from .task import Data, Encoder, losses_of
from .tuned import BETAS, DECAY, EPS, EPS_ROOT, LR, of_each, start


def optimizer() -> hft.Optimizer:
    return hft.adamw(LR, BETAS, EPS, DECAY, eps_root=EPS_ROOT)


def by_library(net: Encoder, data: Data, strategy: Strategy, **loss: bool) -> Callable[[], dict[str, Tensor]]:
    """``loss`` has the options of :func:`losses_of`."""
    train_loss, held_out_loss = losses_of(net, **loss)
    opt = optimizer()

    def run() -> dict[str, Tensor]:
        params, numbers = start(net, data)
        hparams = {**opt.hparams, "lr": of_each(params, numbers), "loss": {"weight": numbers.weight}}
        end = hft.train(opt, train_loss, params, data.batches, hparams=hparams, strategy=strategy).params
        return numbers.gradient(held_out_loss(end, data.held_out))

    return run


def by_hand(net: Encoder, data: Data, **loss: bool) -> Callable[[], dict[str, Tensor]]:
    """``torch.autograd.grad(create_graph=True)`` and AdamW written down: the graphs of all steps are kept."""
    train_loss, held_out_loss = losses_of(net, **loss)

    @sdpa_kernel(SDPBackend.MATH)  # the fused kernels have no second derivative
    def run() -> dict[str, Tensor]:
        params, numbers = start(net, data)
        lr = of_each(params, numbers)
        params = {name: p.requires_grad_() for name, p in params.items()}
        m, v = ({name: torch.zeros_like(p) for name, p in params.items()} for _ in range(2))
        for k, batch in enumerate(data.batches):
            value = train_loss(params, batch, {"weight": numbers.weight})
            grads = torch.autograd.grad(value, list(params.values()), create_graph=True)
            for name, g in zip(params, grads, strict=True):
                params[name], m[name], v[name] = _adamw(params[name], g, m[name], v[name], lr[name], k + 1)
        return numbers.gradient(held_out_loss(params, data.held_out))

    return run


def _adamw(w: Tensor, g: Tensor, m: Tensor, v: Tensor, lr: Tensor, t: int) -> tuple[Tensor, Tensor, Tensor]:
    b1, b2 = BETAS
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    root = (v / (1 - b2**t) + EPS_ROOT).sqrt() + EPS
    return w - lr * DECAY * w - lr * (m / (1 - b1**t)) / root, m, v


PLAIN = "plain loop"


class Contender(NamedTuple):
    """A strategy, or another way, that of a net and data gives a call. And how its loss computes."""

    strategy: hft.Unroll | Callable[..., Callable[[], dict[str, Tensor]]]
    again: bool = False  # activations a second time
    narrow: bool = False  # in bfloat16
    remat: bool = False  # layers through hft.remat


_SQRT = hft.Unroll(checkpoint="sqrt")
CONTENDERS = {
    PLAIN: Contender(by_hand),
    "TorchOpt": Contender(by_torchopt),
    "higher": Contender(by_higher),
    "Unroll(1)": Contender(hft.Unroll(checkpoint=1)),
    "Unroll(sqrt)": Contender(_SQRT),
    "Unroll(log)": Contender(hft.Unroll(checkpoint="log")),
    "Unroll(auto)": Contender(hft.Unroll(memory=1)),  # as many bytes as there are
    "Unroll(sqrt, offload)": Contender(hft.Unroll(checkpoint="sqrt", offload=True)),
    "Unroll(sqrt), activations again": Contender(_SQRT, again=True),
    "Unroll(sqrt), bfloat16": Contender(_SQRT, narrow=True),
    "Unroll(sqrt), remat": Contender(_SQRT, remat=True),
    "Unroll(log), remat": Contender(hft.Unroll(checkpoint="log"), remat=True),
    "Unroll(disk), remat": Contender(hft.Unroll(offload="disk"), remat=True),
    "Unroll(auto), remat": Contender(hft.Unroll(memory=1), remat=True),
}


def call_of(name: str, net: Encoder, data: Data, memory: int) -> Callable[[], dict[str, Tensor]]:
    """A call that gives the hypergradient, by kinds of numbers; ``memory``: the bytes that "Unroll(auto)" may keep."""
    strategy, again, narrow, remat = CONTENDERS[name]
    if remat and "forward" not in vars(net.layers[0]):
        hft.remat_layers(net, "layers.*")
    if not isinstance(strategy, hft.Unroll):
        return strategy(net, data)
    strategy = replace(strategy, memory=memory) if strategy.memory else strategy
    return by_library(net, data, strategy, again=again, narrow=narrow)
