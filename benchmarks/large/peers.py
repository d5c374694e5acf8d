"""The same hypergradient by other libraries, which keep the graphs of all steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .task import Data, Encoder, Params, losses_of, part_of
from .tuned import BETAS, DECAY, EPS, EPS_ROOT, start

Call = Callable[[], dict[str, Tensor]]


def by_torchopt(net: Encoder, data: Data) -> Call:
    """An AdamW for each part, since each has one learning rate."""
    import torchopt

    train_loss, held_out_loss = losses_of(net)

    @sdpa_kernel(SDPBackend.MATH)  # the fused kernels have no second derivative
    def run() -> dict[str, Tensor]:
        params, numbers = start(net, data)
        params = {name: p.requires_grad_() for name, p in params.items()}
        opts = {
            part: torchopt.adamw(lr, BETAS, EPS, DECAY, eps_root=EPS_ROOT)  # pyright: ignore[reportArgumentType]
            for part, lr in numbers.lr.items()
        }
        parts = {part: {name: p for name, p in params.items() if part_of(name) == part} for part in opts}
        states = {part: opt.init(parts[part]) for part, opt in opts.items()}
        for batch in data.batches:
            params = {name: p for part in parts.values() for name, p in part.items()}
            value = train_loss(params, batch, {"weight": numbers.weight})
            grads = dict(zip(params, torch.autograd.grad(value, [*params.values()], create_graph=True), strict=True))
            for part, opt in opts.items():
                mine = {name: grads[name] for name in parts[part]}
                updates, states[part] = opt.update(mine, states[part], params=parts[part], inplace=False)
                parts[part] = torchopt.apply_updates(parts[part], updates, inplace=False)
        end = {name: p for part in parts.values() for name, p in part.items()}
        return numbers.gradient(held_out_loss(end, data.held_out))

    return run


def by_higher(net: Encoder, data: Data) -> Call:
    """Its Adam, and the decay of AdamW by hand."""
    import higher

    train_loss, held_out_loss = losses_of(net)

    @sdpa_kernel(SDPBackend.MATH)  # the fused kernels have no second derivative
    def run() -> dict[str, Tensor]:
        _, numbers = start(net, data)
        names = [name for name, _ in net.named_parameters()]
        groups = [{"params": [p for name, p in net.named_parameters() if part_of(name) == part]} for part in numbers.lr]
        adam = torch.optim.Adam(groups, 1.0, BETAS, EPS)
        lrs = {"lr": [*numbers.lr.values()]}
        with higher.innerloop_ctx(net, adam, override=lrs, copy_initial_weights=True) as pair:
            inner: Any
            inner, opt = pair
            for batch in data.batches:
                old: Params = dict(zip(names, inner.parameters(), strict=True))
                new = opt.step(train_loss(old, batch, {"weight": numbers.weight}))
                inner.update_params(
                    [p - numbers.lr[part_of(name)] * DECAY * w for p, (name, w) in zip(new, old.items(), strict=True)]
                )
            return numbers.gradient(held_out_loss(dict(zip(names, inner.parameters(), strict=True)), data.held_out))

    return run
