"""The small problem of the contract, and the grounds of truth: plain loops and central differences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hyperopt_ftp import tree
from hyperopt_ftp.testing import central_differences as central_differences
from hyperopt_ftp.testing import largest_difference as largest_difference
from hyperopt_ftp.testing import small_batches as batches
from hyperopt_ftp.testing import small_loss as loss
from hyperopt_ftp.testing import small_params as start
from hyperopt_ftp.testing import small_training as train

__all__ = ["Cube", "batches", "central_differences", "entries", "largest_difference", "loop", "loss", "start", "train"]


def loop(opt: Any, train_loss: Any, params: Any, data: Any, state: Any = None, hparams: Any = None, last: Any = None):
    """Params and state after the loop as anybody writes it, with the graph of its steps, or of so many last ones."""
    state = opt.init(params, hparams) if state is None else state
    for k, x in enumerate(data):
        if last and k == len(data) - last:
            params, state = tree.map_tree(torch.detach, (params, state))
        params = tree.map_tree(lambda p: p if p.requires_grad else p.detach().requires_grad_(), params)
        leaves, rebuild = tree.flatten(params)
        grads = torch.autograd.grad(train_loss(params, x), leaves, create_graph=True)
        params, state = opt.update(rebuild(list(grads)), state, params, hparams)
    return params, state


class Cube(torch.autograd.Function):
    """What can be differentiated once."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


def entries(values: Any) -> Tensor:
    """All entries of all leaves, one after the other."""
    return torch.cat([x.reshape(-1) for x in tree.leaves(values)])
