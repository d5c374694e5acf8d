"""An update rule that is a small network: an optimizer whose hyperparameters are the network's weights."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

import hyperopt_ftp as hft
from hyperopt_ftp import tree

DECAYS = (0.5, 0.9, 0.99)  # of the running means of the gradient
SQUARE_DECAY = 0.99  # of the running mean of its square
TIMES = (3.0, 10.0, 30.0, 100.0, 300.0)  # steps
FEATURES = 3 + 2 * (1 + len(DECAYS)) + len(TIMES)
FIRST_RATE = 3e-3  # of the rule before meta-training, whose direction is that of Adam
SMALL = 1e-12

Net = dict[str, Tensor]


class LearnedState(NamedTuple):
    step: Tensor  # shape (), float: updates done
    means: Tensor  # (decays, weights): running means of the gradient, all tensors of the params in one row
    square: Tensor  # (weights,): of its square


def first_net(hidden: int, seed: int) -> Net:
    """The rule before meta-training: m / sqrt(v), as in Adam, and hidden units that say nothing yet."""
    g = torch.Generator().manual_seed(seed)
    skip = torch.zeros(FEATURES, 2)
    skip[1 + DECAYS.index(0.9), 0] = 1.0
    weight = torch.randn(FEATURES, hidden, generator=g) / FEATURES**0.5
    return {"w0": weight, "b0": torch.zeros(hidden), "w1": torch.zeros(hidden, 2), "b1": torch.zeros(2), "skip": skip}


def learned(net: Net) -> hft.Optimizer[LearnedState]:
    """Each weight moves by ``rate * d * exp(s)``, where (d, s) is what the network makes of the weight's features.

    Features are free of the loss's scale: they are divided by their root mean square over the tensor, or by the root
    of the running mean of squares (arXiv 2009.11243 has most of them).
    """

    def init(params: Any, hparams: Any = None) -> LearnedState:
        flat = _flat(params)
        return LearnedState(flat.new_zeros(()), flat.new_zeros(len(DECAYS), len(flat)), torch.zeros_like(flat))

    def update(grads: Any, state: LearnedState, params: Any, hparams: Any = None) -> tuple[Any, LearnedState]:
        own: Net = net if hparams is None else hparams["net"]
        g, w, step = _flat(grads), _flat(params), state.step + 1
        decays = w.new_tensor(DECAYS)[:, None]
        means = decays * state.means + (1 - decays) * g
        square = SQUARE_DECAY * state.square + (1 - SQUARE_DECAY) * g * g
        rows = torch.cat([g[None], means / (1 - decays**step)])
        seen = _features(rows, square / (1 - SQUARE_DECAY**step), w, step, _sizes(params))
        out = torch.tanh(seen @ own["w0"] + own["b0"]) @ own["w1"] + own["b1"] + seen @ own["skip"]
        moved = w - FIRST_RATE * out[:, 0] * torch.exp(out[:, 1].clamp(-8, 8))
        return _like(params, moved), LearnedState(step, means, square)

    return hft.Optimizer(init, update, {"net": net})


def _features(rows: Tensor, square: Tensor, w: Tensor, step: Tensor, sizes: list[int]) -> Tensor:
    """(weights, FEATURES), from the gradient and its means, the mean square, the weights and the number of the step."""
    by_root = rows / (square + SMALL).sqrt()
    levels = torch.cat([rows**2, (w**2)[None], square[None]])
    level = _level(levels, sizes)  # mean square over each tensor
    by_level = torch.cat([rows, w[None]]) / (level[:-1] + SMALL).sqrt()
    relative = 0.25 * ((square + SMALL) / (level[-1] + SMALL)).log().clamp(-12, 4)
    size = 0.25 * (level[-2] + 1e-6).log()
    times = torch.tanh(step / w.new_tensor(TIMES))[:, None].expand(-1, len(w))
    return torch.cat([by_root, by_level, relative[None], size[None], times]).T


def _level(values: Tensor, sizes: list[int]) -> Tensor:
    """The mean over each tensor, at each of its entries."""
    return torch.cat([part.mean(-1, keepdim=True).expand_as(part) for part in values.split(sizes, -1)], -1)


def _sizes(params: Any) -> list[int]:
    return [w.numel() for w in tree.leaves(params)]


def _flat(params: Any) -> Tensor:
    return torch.cat([w.flatten() for w in tree.leaves(params)])


def _like(params: Any, flat: Tensor) -> Any:
    leaves, rebuild = tree.flatten(params)
    parts = flat.split(_sizes(params))
    return rebuild([part.reshape(w.shape) for part, w in zip(parts, leaves, strict=True)])


def over_tasks(base: hft.Optimizer) -> hft.Optimizer:
    """``base`` for many trainings at once, along the first dimension of all params: each has its own state."""

    def init(params: Any, hparams: Any = None) -> Any:
        return torch.func.vmap(lambda p: base.init(p, hparams))(params)

    def update(grads: Any, state: Any, params: Any, hparams: Any = None) -> tuple[Any, Any]:
        return torch.func.vmap(lambda g, s, p: base.update(g, s, p, hparams))(grads, state, params)

    return hft.Optimizer(init, update, base.hparams)
