"""What is seen of a training loss: functions without a second derivative, numbers it takes, leaves it makes."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable

import hyperopt_ftp as hft

from ..support.hypergradients import F64, SGD, call, differences, every_exact, f64, slope
from ..support.problems import central_differences, start

# -- functions that can be differentiated once ------------------------------------------------------------------------


class Cube(torch.autograd.Function):
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


class Marked(Cube):
    """The usual stack of decorators in extensions."""

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    @once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


def cubed(params, x, function=Cube):
    return sum(function.apply(v).sum() for v in params.values()) + x.mean()


def decorated(params, x):
    return cubed(params, x, Marked)


def drawn(params, x):
    return torch.distributions.Beta(params["b"].exp(), 1 + x.mean().abs()).rsample().square().sum()


@pytest.mark.parametrize("loss", [cubed, decorated, drawn])
@every_exact
def test_a_function_that_can_be_differentiated_once_is_refused(strategy, loss):
    """Where its output's cotangent is constant torch would take it for linear, and say nothing."""
    with pytest.raises(RuntimeError, match=r"no second derivative .* is once_differentiable"):
        slope(loss, strategy)


@pytest.mark.parametrize("over", ["params", "batches", ("lr", "params")])
def test_it_is_refused_whatever_a_derivative_is_taken_in(over):
    for strategy in (hft.Unroll(), hft.Unroll(checkpoint=1)):
        with pytest.raises(RuntimeError, match="is once_differentiable"):
            call(cubed, strategy, over=over)


@pytest.mark.parametrize("strategy", [hft.Unroll(), hft.Unroll(checkpoint=1)])
def test_a_function_of_hparams_alone_is_differentiated_once(strategy):
    """A gradient in the params does not go through it."""

    def loss(params, x, h):
        return Cube.apply(h) * (params["w"] - x.mean()).square().mean() + params["b"].square().sum()

    def at(h):
        return call(loss, hft.Unroll(checkpoint=False), hparams={"loss": h})[0]

    got = call(loss, strategy, over="loss", hparams={"loss": f64(0.8)})[1]["loss"]
    assert got.item() == pytest.approx(central_differences(at, f64(0.8))[0].item(), rel=1e-6)
    with pytest.raises(RuntimeError, match="once_differentiable"):  # which differentiates a backward pass again
        call(loss, hft.Forward(), over="loss", hparams={"loss": f64(0.8)})


@pytest.mark.parametrize("transform", [torch.func.grad, lambda f: lambda h: torch.func.jvp(f, (h,), (f64(1.0),))[1]])
def test_it_is_refused_under_transforms(transform):
    def end(lr):
        params = hft.train(SGD, cubed, start(), [f64([1.0])] * 2, hparams={**SGD.hparams, "lr": lr}).params
        return sum(x.sum() for x in params.values())

    with pytest.raises(RuntimeError, match=r"no second derivative .*once_differentiable"):
        transform(end)(f64(0.1))


def test_it_may_train_where_nothing_is_differentiated():
    params, data = start(), [f64([1.0])] * 2

    def losses(lr):
        return hft.train(SGD, cubed, params, data, hparams={**SGD.hparams, "lr": lr}).losses

    together = torch.func.vmap(losses)(SGD.hparams["lr"][None])
    torch.testing.assert_close(together[0], losses(SGD.hparams["lr"]), rtol=1e-12, atol=0)


def test_zero_order_needs_no_derivative():
    slope(cubed, hft.ZeroOrder(2, 1e-3))


# -- numbers ----------------------------------------------------------------------------------------------------------

TAKEN = {
    "torch.tensor of a tensor": lambda p, h: torch.tensor(h["s"].exp()),
    "new_tensor of a tensor": lambda p, h: p.new_tensor(h["s"]),
    "linspace": lambda p, h: torch.linspace(0, h["s"].exp(), 2)[1],
    "float of a function": lambda p, h: float(h["s"].sigmoid()),
    "item of an entry": lambda p, h: h["v"][0].item(),
    "tolist": lambda p, h: (2 * h["v"]).tolist()[0],
    "torch.tensor": lambda p, h: torch.tensor([h["s"].exp(), 1.0])[0],
    "as_tensor": lambda p, h: torch.as_tensor([h["s"].exp(), 1.0])[0],
    "new_tensor": lambda p, h: p.new_tensor([h["s"].exp()])[0],
    "int": lambda p, h: int(10 * h["s"].exp()),
}
VALUES = f64([1.0]), {"s": f64(0.3)}
HPARAMS = {"loss": {"s": f64(0.3), "v": f64([0.1, 0.2]), "l2": f64(0.1)}}


def with_number(take):
    def loss(params, x, h):
        w = params["w"]
        return 0.01 * take(w, h) * (w.sum() - x.mean()) ** 2 + h["l2"] * (w**2).sum() + params["b"].sum() ** 2

    return loss


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning")  # torch's
@pytest.mark.parametrize("take", TAKEN.values(), ids=TAKEN)
@every_exact
def test_a_number_made_of_an_hparam_is_refused(strategy, take):
    """Beside an hparam that is not lost: no derivative is exactly 0."""
    with pytest.raises(RuntimeError, match="takes the number of an hparam that a derivative is asked for"):
        call(with_number(take), strategy, over="loss", hparams=HPARAMS)


CONSTANT = {
    "detached": lambda p, h: h["s"].detach().sigmoid().item(),
    "a comparison": lambda p, h: 2.0 if bool(h["s"] > 0) else 1.0,
    "as_tensor of a tensor": lambda p, h: torch.as_tensor(h["s"]),
    "as_tensor by name": lambda p, h: torch.as_tensor(data=h["s"].exp()),
    "a text": lambda p, h: len(f"{h['s']:.1f}"),
}


@pytest.mark.parametrize("take", CONSTANT.values(), ids=CONSTANT)
def test_what_is_constant_or_a_tensor_is_left_alone(take):
    loss = with_number(take)
    grads = call(loss, hft.Unroll(), over="loss", hparams=HPARAMS)[1]["loss"]
    for name in ("l2", "s"):

        def at(x, name=name):
            own = {"loss": {**HPARAMS["loss"], name: x}}
            return call(loss, hft.Unroll(checkpoint=False), over="lr", hparams=own)[0]

        want = 0.0 if name == "s" and "tensor" not in str(take(*VALUES)) else None
        want = central_differences(at, HPARAMS["loss"][name])[0].item() if want is None else want
        assert grads[name].item() == pytest.approx(want, rel=1e-6, abs=1e-12)


def value_of(params, x):
    return sum((v - x.mean()).square().sum() for v in params.values())


LOG: list[float] = []


def log_at_the_end(params, x):
    value = 0.5 * value_of(params, x)
    LOG.append(value.item())
    return value


def log_on_the_way(params, x):
    value = 0.5 * value_of(params, x)
    LOG.append(value.item())
    other = params["w"].square().sum()
    LOG.append(float(other))
    return value + other


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")  # torch's own, once in a process
@pytest.mark.parametrize("logged", [log_at_the_end, log_on_the_way])
@every_exact
def test_a_log_is_left_alone(strategy, logged):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*makes a number.*")
        slope(logged, strategy)
    assert LOG


def used_at_once(params, x):
    value = value_of(params, x)
    return value * (1 + 0 * value.item())


def used_in_the_next_step(params, x):
    value = value_of(params, x) / (1 + LOG[-1])
    LOG.append(value.item())
    return value


@pytest.mark.parametrize("uses", [used_at_once, used_in_the_next_step])
def test_a_number_of_params_that_is_used_warns_once(uses):
    LOG[:] = [0.0]
    with pytest.warns(UserWarning, match=r"makes a number .* take x\.detach\(\)\.item\(\)") as caught:
        slope(uses, hft.Unroll())
    assert len(caught) == 1
    assert caught[0].filename == __file__


# -- leaves of its own ------------------------------------------------------------------------------------------------


def pinn(how):
    """A residual of a differential equation: a derivative in the input, which is no param."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()

    def loss(params, x):
        x = how(x)
        u = torch.func.functional_call(net, params, (x,))
        (du,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        return (du[:, :1] - u).square().mean()

    return {name: p.detach() for name, p in net.named_parameters()}, loss


def assigned(x):
    x = x.detach()
    x.requires_grad = True
    return x


def factory(x):
    return torch.tensor(x.tolist(), dtype=x.dtype, requires_grad=True)


def in_place(x):
    x.requires_grad_()
    return x


def in_place_assigned(x):
    x.requires_grad = True
    return x


LEAVES = {
    "requires_grad_ of the batch": in_place,
    "requires_grad = of the batch": in_place_assigned,
    "requires_grad_": lambda x: x.detach().requires_grad_(),
    "requires_grad =": assigned,
    "requires_grad=": factory,
}


@pytest.mark.parametrize("how", LEAVES.values(), ids=LEAVES)
@every_exact
def test_a_derivative_in_the_input_inside_a_loss_is_right(strategy, how):
    params, loss = pinn(how)
    torch.manual_seed(1)
    given = {"params": params, "data": [torch.rand(5, 2, dtype=F64) for _ in range(3)]}
    outer = {"outer_loss": lambda p: sum(x.square().sum() for x in p.values())}
    got = slope(loss, strategy, **given, **outer)
    assert got.item() == pytest.approx(differences(loss, **given, **outer), rel=1e-6)


def test_it_may_train_with_grad_mode_on():
    params, loss = pinn(LEAVES["requires_grad_"])
    data = [torch.rand(5, 2, dtype=F64)] * 3
    with torch.no_grad():
        want = hft.train(SGD, loss, params, data).losses
    assert torch.equal(hft.train(SGD, loss, params, data).losses, want)


@pytest.mark.parametrize("asked", [False, True])
def test_a_batch_that_a_loss_lets_require_grad_is_not_the_callers(asked):
    params, loss = pinn(in_place)
    data = [torch.rand(5, 2, dtype=F64) for _ in range(3)]
    hft.train(SGD, loss, params, data, hparams={"lr": f64(0.1).requires_grad_(asked)})
    assert not any(x.requires_grad for x in data)


def test_a_stranger_beside_a_leaf_of_its_own_is_refused():
    params, loss = pinn(LEAVES["requires_grad_"])
    stranger = f64(0.5).requires_grad_()
    with pytest.raises(ValueError, match=r"uses a tensor of shape \(\) .* its derivative would be lost"):
        hft.train(SGD, lambda p, x: loss(p, x) * stranger, params, [torch.rand(5, 2, dtype=F64)])


def test_random_numbers_are_drawn_once_where_the_loss_is_looked_at_again():
    params, inner = pinn(LEAVES["requires_grad_"])

    def loss(p, x):
        return inner(p, x + torch.randn_like(x))

    torch.manual_seed(3)
    with torch.no_grad():
        want = hft.train(SGD, loss, params, [torch.zeros(5, 2, dtype=F64)] * 3).losses
    torch.manual_seed(3)
    got = hft.train(SGD, loss, params, [torch.zeros(5, 2, dtype=F64)] * 3).losses
    assert torch.equal(got, want)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hft.hypergradient(SGD, loss, lambda p: p["0.bias"].sum(), params, [torch.zeros(5, 2, dtype=F64)] * 3, "lr")
