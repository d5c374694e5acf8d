"""What a loss cuts off its graph: detached values, and numbers of its params."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import hyperopt_ftp as hft

from ...support.hypergradients import DATA, F64, SGD, differences, every_way, hidden, outer, slope
from ...support.problems import loop, loss, start

LOG: list[float] = []

# -- detached values --------------------------------------------------------------------------------------------------


def item_of_zeros(p, x):
    z = torch.zeros(4, dtype=F64)
    z[0] = p["b"][1].detach()
    return loss(p, x) + (p["b"] * z).sum()


DETACHES = {
    "a target": lambda p, x: (hidden(p, x) - torch.tanh(hidden(p, x)).detach()).square().mean(),
    "data": lambda p, x: loss(p, x) * p["b"].data.square().sum(),
    "torch.detach, in an item": item_of_zeros,
    "detach_": lambda p, x: (hidden(p, x) - torch.tanh(hidden(p, x)).detach_()).square().mean(),
}
KEEPS = {
    "a log": lambda p, x: [y := loss(p, x), float(2 * y.detach())][0],
    "the batch": lambda p, x: loss(p, x.detach()),
    "batch norm": lambda p, x: F.batch_norm(
        hidden(p, x), torch.zeros(4, dtype=F64), torch.ones(4, dtype=F64), training=True
    ).tanh().square().mean() + loss(p, x),
}  # fmt: skip


@pytest.mark.parametrize("train_loss", DETACHES.values(), ids=DETACHES)
@every_way
def test_a_loss_that_detaches_a_function_of_its_params_is_warned_of(strategy, train_loss):
    """The derivative is that of a loop by hand, and not that of the training."""
    with pytest.warns(UserWarning, match="train_loss detaches a function of its params"):
        got = slope(train_loss, strategy)
    lr = SGD.hparams["lr"].clone().requires_grad_()
    params, _ = loop(SGD, train_loss, start(), DATA, hparams={**SGD.hparams, "lr": lr})
    torch.testing.assert_close(got, torch.autograd.grad(outer(params), lr)[0], rtol=1e-11, atol=0)
    assert abs(got - differences(train_loss)) > 1e-3 * abs(got)


@pytest.mark.parametrize("train_loss", KEEPS.values(), ids=KEEPS)
@every_way
def test_a_detach_by_which_nothing_is_lost_is_not(strategy, train_loss):
    assert slope(train_loss, strategy).item() == pytest.approx(differences(train_loss), rel=1e-6)


@pytest.mark.parametrize("train_loss", DETACHES.values(), ids=DETACHES)
def test_nor_one_where_no_gradient_is_differentiated_in_params(train_loss):
    assert slope(train_loss, data=DATA[:1]).item() == pytest.approx(differences(train_loss, data=DATA[:1]), rel=1e-6)
    slope(train_loss, hft.Unroll(first_order=True))
    if train_loss is not item_of_zeros:  # which vmap does not take
        slope(train_loss, hft.ZeroOrder(2, 1e-3))


# -- numbers of params ------------------------------------------------------------------------------------------------


def log_on_the_way(params, x):
    value = 0.5 * loss(params, x)
    LOG.append(value.item())
    other = params["w"].square().sum()
    LOG.append(float(other))
    return value + other


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")  # torch's own, once in a process
@every_way
def test_a_log_is_left_alone(strategy):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*makes a number.*")
        slope(log_on_the_way, strategy)
    assert LOG


def used_at_once(params, x):
    value = loss(params, x)
    return value * (1 + 0 * value.item())


def used_in_the_next_step(params, x):
    value = loss(params, x) / (1 + LOG[-1])
    LOG.append(value.item())
    return value


def used_as(make):
    """By a way that torch does not show: what comes of it is no argument, and not made of tensors."""

    def train_loss(params, x):
        value = loss(params, x)
        return value * make(1 / (1 + value.item()))

    return train_loss


UNSEEN = {
    "Tensor": lambda k: torch.Tensor([k])[0],
    "from_numpy": lambda k: torch.from_numpy(np.full(1, k))[0],
    "as_tensor": lambda k: torch.as_tensor(np.array(k)),
    "float32": np.float32,
}


@pytest.mark.parametrize(
    "uses", [used_at_once, used_in_the_next_step, *map(used_as, UNSEEN.values())], ids=["once", "next", *UNSEEN]
)
def test_a_number_of_params_that_is_used_warns_once(uses):
    LOG[:] = [0.0]
    with pytest.warns(UserWarning, match=r"makes a number .* take x\.detach\(\)\.item\(\)") as caught:
        slope(uses, hft.Unroll())
    assert [w.filename for w in caught] == [__file__]
