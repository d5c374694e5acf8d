"""The losses as pure functions of the params."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from .network import Encoder, part_of
from .sentences import Batch

Params = dict[str, Tensor]


def losses_of(
    net: Encoder, again: bool = False, narrow: bool = False
) -> tuple[Callable[[Params, Batch, dict[str, Tensor]], Tensor], Callable[[Params, Batch], Tensor]]:
    """The training loss, whose third argument has a weight for each example, and the loss on held-out data.

    Args:
        net: gives the structure; its own parameters are not used.
        again: activations inside a layer are computed again where a gradient needs them.
        narrow: autocast to bfloat16.
    """
    layers = [name for name in net.parts() if name.startswith("layers.")]

    def each(params: Params, batch: Batch) -> Tensor:
        own: dict[str, Params] = {part: {} for part in net.parts()}
        for name, p in params.items():
            part = part_of(name)
            own[part][name[len(part) + 1 :]] = p

        def call(part: str, *inputs: Tensor) -> Any:
            return functional_call(net.get_submodule(part), own[part], inputs)

        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            x, mask = call("embed", batch.tokens), batch.mask[:, None, None]
            for layer in layers:
                # Inside of it functional_call: a checkpoint inside of functional_call would compute with other weights.
                x = checkpoint(call, layer, x, mask, use_reentrant=False) if again else call(layer, x, mask)
            weight = batch.mask[..., None].to(x.dtype)
            logits = call("head", (x * weight).sum(1) / weight.sum(1))
        return cross_entropy(logits.to(params["head.bias"].dtype), batch.labels, reduction="none")

    def train_loss(params: Params, batch: Batch, hparams: dict[str, Tensor]) -> Tensor:
        return (torch.sigmoid(hparams["weight"][batch.ids]) * each(params, batch)).mean()

    return train_loss, lambda params, batch: each(params, batch).mean()
