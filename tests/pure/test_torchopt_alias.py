"""Our optimizers in each of TorchOpt's forms against torch.optim in float64.

The network has a parameter that is never used and one that is used in every other step, so gradients are ``None``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
import torchopt
from torch import Tensor, nn

import hyperopt_ftp as hft

from ..support.pairs import pairs

STEPS = 8  # RAdam rectifies from its 6th on


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        for name, shape in {"w1": (3, 4), "b1": (4,), "w2": (4, 2), "seldom": (2,), "unused": (3,)}.items():
            value = torch.randn(shape, generator=generator, dtype=torch.float64)
            self.register_parameter(name, nn.Parameter(value))

    def forward(self, x: Tensor, t: int) -> Tensor:
        y = torch.tanh(x @ self.w1 + self.b1) @ self.w2
        return (torch.sin(y + self.seldom if t % 2 else y) + 0.5 * y.square()).mean()


def data() -> Iterator[tuple[Tensor, int]]:
    generator = torch.Generator().manual_seed(5)
    return ((torch.randn(5, 3, generator=generator, dtype=torch.float64), t) for t in range(STEPS))


# -- TorchOpt's forms of a training loop ------------------------------------------------------------------------------


def functional(opt: Any, net: Net, inplace: bool) -> dict[str, Tensor]:
    params = dict(net.named_parameters())
    state = opt.init(params)
    for x, t in data():
        value = torch.func.functional_call(net, params, (x, t))
        grads = torch.autograd.grad(value, list(params.values()), allow_unused=True)
        updates, state = opt.update(dict(zip(params, grads, strict=True)), state, params=params, inplace=inplace)
        assert [name for name, u in updates.items() if u is None] == ["unused"] if t % 2 else ["seldom", "unused"]
        params = torchopt.apply_updates(params, updates, inplace=inplace)
    return params


def chained(opt: Any, net: Net, inplace: bool) -> dict[str, Tensor]:
    """Between two that change nothing."""
    same = torchopt.transform.scale(1.0)
    return functional(torchopt.chain(torchopt.chain(same, opt), same), net, inplace)


def func_optimizer(opt: Any, net: Net, inplace: bool) -> dict[str, Tensor]:
    wrapped, names = torchopt.FuncOptimizer(opt, inplace=inplace), [name for name, _ in net.named_parameters()]
    params = tuple(net.parameters())
    for x, t in data():
        value = torch.func.functional_call(net, dict(zip(names, params, strict=True)), (x, t))
        params = wrapped.step(value, params)
    return dict(zip(names, params, strict=True))


def optimizer(opt: Any, net: Net, inplace: bool) -> dict[str, Tensor]:
    wrapped = torchopt.Optimizer(net.parameters(), opt)
    for x, t in data():
        wrapped.zero_grad(set_to_none=True)
        net(x, t).backward()
        wrapped.step()
    return dict(net.named_parameters())


def meta_optimizer(opt: Any, net: Net, inplace: bool) -> dict[str, Tensor]:
    wrapped = torchopt.MetaOptimizer(net, opt)
    for x, t in data():
        wrapped.step(net(x, t))
    return dict(net._parameters)


#: Each with what its ``inplace`` may be.
FORMS = [
    *product((functional, chained, func_optimizer), (False, True)),
    (optimizer, True),
    (meta_optimizer, False),
]

# -- the optimizers (test_torch_options.py compares their options) -----------------------------------------------------

#: A step rounds W about four times, in W + ((W - d) - W): 4 * 2^-53 * 4 = 2e-15 where |W| < 4. The gradients carry that
#: on: seven times the 1.4e-14 of eight steps.
TOLERANCE = 1e-13

TORCHS = {
    "sgd": (torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9, "dampening": 0.5, "weight_decay": 1e-2}),
    "adam": (torch.optim.Adam, {"lr": 1e-2, "amsgrad": True, "maximize": True}),
    "adamw": (torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 1e-2}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 1e-2, "momentum": 0.9, "centered": True}),
    "adagrad": (torch.optim.Adagrad, {"lr": 1e-2, "lr_decay": 1e-2}),
    "adadelta": (torch.optim.Adadelta, {"weight_decay": 1e-2}),
    "adamax": (torch.optim.Adamax, {"lr": 1e-2}),
    "radam": (torch.optim.RAdam, {"lr": 1e-2, "decoupled_weight_decay": True, "weight_decay": 1e-2}),
}


@pytest.mark.parametrize(("form", "inplace"), FORMS)
@pytest.mark.parametrize("name", TORCHS)
def test_it_is_that_of_torch_optim(name: str, form: Callable[..., dict[str, Tensor]], inplace: bool):
    (peer, options), net = TORCHS[name], Net()
    reference = peer(net.parameters(), **options)
    for x, t in data():
        reference.zero_grad(set_to_none=True)
        net(x, t).backward()
        reference.step()
    got = form(hft.to_torchopt(getattr(hft, name)(**options)), Net(), inplace)
    want = dict(net.named_parameters())
    torch.testing.assert_close({key: got[key] for key in want}, want, rtol=0, atol=TOLERANCE)


ROWS = pairs(
    {
        "lr": [1e-3, 1e-2],
        "weight_decay": [0.0, 1e-2],
        "maximize": [False, True],
        "alpha": [0.9, 0.99],
        "eps": [1e-8, 1e-4],
        "momentum": [0.5, 0.9],
        "centered": [False, True],
    }
)


@pytest.mark.parametrize("options", ROWS, ids=str)
def test_rmsprop_with_nesterov_is_that_of_torchopt(options: dict[str, Any]):
    """torch has none. TorchOpt forgets the momentum of a leaf whose gradient is ``None``, so all are used."""

    def trained(opt: Any) -> dict[str, Tensor]:
        net = Net()
        params = {name: p.detach() for name, p in net.named_parameters() if name != "unused"}
        state = opt.init(params)
        for x, _ in data():
            grads = torch.func.grad(lambda p, x=x: torch.func.functional_call(net, p, (x, 1)))(params)
            updates, state = opt.update(grads, state, params=params, inplace=False)
            params = torchopt.apply_updates(params, updates, inplace=False)
        return params

    ours = trained(hft.to_torchopt(hft.rmsprop(**options, nesterov=True)))
    theirs = trained(torchopt.rmsprop(**options, nesterov=True))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)
    plain = trained(hft.to_torchopt(hft.rmsprop(**options)))
    assert (plain["w1"] - ours["w1"]).abs().max() > 1e-4
