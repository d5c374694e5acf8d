"""What a training loss may do, and what is refused or warned of: functions, detached values, numbers, leaves."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hyperopt_ftp as hft
from hyperopt_ftp import tree

from ...support.compare import same
from ...support.hypergradients import (
    DATA,
    EXACT,
    F64,
    SGD,
    call,
    differences,
    every_strategy,
    every_way,
    f64,
    hidden,
    not_converged,
    outer,
    slope,
)
from ...support.problems import Cube, central_differences, loop, loss, start

TRANSFORMS = {
    "grad": torch.func.grad,
    "jvp": lambda f: lambda x: torch.func.jvp(f, (x,), (tree.map_tree(torch.ones_like, x),))[1],
}
every_transform = pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)

# -- losses without a graph, and no gradients at all ------------------------------------------------------------------

NO_GRAPH = {
    "detach": lambda p, x: loss(p, x).detach(),
    "no_grad": torch.no_grad()(lambda p, x: loss(p, x)),
    "item": lambda p, x: torch.tensor(loss(p, x).item()),
    "inference": torch.inference_mode()(lambda p, x: loss({k: v.clone() for k, v in p.items()}, x)),
}


@pytest.mark.filterwarnings("ignore:train_loss makes a number:UserWarning")
@pytest.mark.parametrize("train_loss", NO_GRAPH.values(), ids=NO_GRAPH)
@every_strategy
def test_a_loss_without_a_graph_is_an_error(strategy, train_loss):
    for act in (
        lambda: call(train_loss, strategy),
        lambda: hft.train(SGD, train_loss, start(), DATA, strategy=strategy),
    ):
        with pytest.raises(ValueError, match="loss without a graph: .*(detach, no_grad, item, inference mode)"):
            act()


@not_converged
@every_strategy
def test_under_inference_mode_there_are_values_and_no_hypergradients(strategy):
    lr, params = f64(0.2).requires_grad_(), start()
    want = hft.train(SGD, loss, params, DATA, hparams={"lr": lr}, strategy=strategy).detached()
    with torch.inference_mode():
        made = {n: x.clone() for n, x in params.items()}, [x.clone() for x in DATA], {"lr": lr.clone()}
        for given in ((params, DATA, {"lr": lr}), made, (params, Reader(made[1]), {"lr": lr})):
            run = hft.train(SGD, loss, *given[:2], hparams=given[2], strategy=strategy)
            assert not any(x.requires_grad or x.is_inference() for x in tree.leaves(run))
            assert same(run, want)
        with pytest.raises(RuntimeError, match="no gradients under torch.inference_mode.*hft.train"):
            call(strategy=strategy)
        twice = {n: torch.stack([x, x + 1]) for n, x in made[0].items()}
        found = torch.func.vmap(lambda p: hft.train(SGD, loss, p, made[1], strategy=strategy).params)(twice)
        torch.testing.assert_close({n: x[0] for n, x in found.items()}, want.params, rtol=1e-13, atol=1e-15)
        assert torch.is_inference_mode_enabled()
    assert torch.equal(slope(strategy=strategy, params=made[0], data=made[1]), slope(strategy=strategy, params=params))
    if strategy in (EXACT["unroll"], EXACT["unroll-every-step"]):
        with torch.inference_mode():
            *_, last = hft.steps(SGD, loss, *made[:2], strategy=strategy)
            progress = hft.train(SGD, loss, *made[:2], strategy=strategy, progress=True)
        for found in (last, progress):
            torch.testing.assert_close(found.params, want.params, rtol=1e-13, atol=1e-15)
            assert not any(x.is_inference() for x in tree.leaves((found.params, found.state)))


class Reader:
    """A sequence that is no list."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, k):
        return self.data[k]


@every_way
def test_no_grad_outside_changes_nothing(strategy):
    with torch.no_grad():
        got = slope(strategy=strategy)
    assert torch.equal(got, slope(strategy=strategy))


def test_a_loss_of_ones_own_may_inherit_from_torch_s():
    class Own(nn.modules.loss._Loss):
        def forward(self, params, batch):
            return loss(params, batch)

    assert torch.equal(slope(train_loss=Own()), slope())


# -- functions that can be differentiated once ------------------------------------------------------------------------


class Marked(Cube):
    """The usual stack of decorators in extensions."""

    backward = staticmethod(torch.amp.custom_bwd(device_type="cpu")(Cube.backward))


def cubed(params, x, function=Cube):
    return sum(function.apply(v).sum() for v in params.values()) + x.mean()


ONCE = {
    "function": cubed,
    "decorated": lambda p, x: cubed(p, x, Marked),
    "torch's": lambda p, x: torch.distributions.Beta(p["b"].exp(), 1 + x.mean().abs()).rsample().square().sum(),
}


@pytest.mark.parametrize("over", ["lr", "params", "batches", ("lr", "params")])
@pytest.mark.parametrize("train_loss", ONCE.values(), ids=ONCE)
@every_way
def test_a_function_that_can_be_differentiated_once_is_refused(strategy, train_loss, over):
    """Where its output's cotangent is constant torch would take it for linear, and say nothing."""
    with pytest.raises(RuntimeError, match=r"no second derivative .* is once_differentiable"):
        call(train_loss, strategy, over)


@pytest.mark.parametrize("strategy", [hft.Unroll(), hft.Unroll(checkpoint=1)])
def test_a_function_of_hparams_alone_is_differentiated_once(strategy):
    """A gradient in the params does not go through it."""

    def train_loss(params, x, h):
        return Cube.apply(h) * (params["w"] - x.mean()).square().mean() + params["b"].square().sum()

    def at(h):
        return call(train_loss, hft.Unroll(checkpoint=False), hparams={"loss": h})[0]

    got = call(train_loss, strategy, over="loss", hparams={"loss": f64(0.8)})[1]["loss"]
    assert got.item() == pytest.approx(central_differences(at, f64(0.8))[0].item(), rel=1e-6)
    with pytest.raises(RuntimeError, match="once_differentiable"):  # which differentiates a backward pass again
        call(train_loss, hft.Forward(), over="loss", hparams={"loss": f64(0.8)})
    h = f64(0.8).requires_grad_()
    run = hft.train(SGD, train_loss, start(), DATA, hparams={"loss": h}, strategy=hft.Unroll(checkpoint=1))
    with pytest.raises(RuntimeError, match="once_differentiable"):  # so does this
        torch.autograd.grad(outer(run.params), h, create_graph=True)


@every_transform
def test_it_is_refused_under_transforms_and_trains_where_nothing_is_differentiated(transform):
    params = start()

    def cubed_end(lr):
        return hft.train(SGD, cubed, params, DATA, hparams={**SGD.hparams, "lr": lr})

    with pytest.raises(RuntimeError, match=r"no second derivative .*once_differentiable"):
        transform(lambda lr: cubed_end(lr).params["b"].sum())(f64(0.01))
    together = torch.func.vmap(lambda lr: cubed_end(lr).losses)(f64([0.01]))
    torch.testing.assert_close(together[0], cubed_end(f64(0.01)).losses, rtol=1e-12, atol=0)
    slope(cubed, hft.ZeroOrder(2, 1e-3))  # needs no derivative


# -- what is detached -------------------------------------------------------------------------------------------------


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
    "an operation of aten": lambda p, h: torch.ops.aten._local_scalar_dense(h["s"]),
}
LOG: list[float] = []
HPARAMS = {"loss": {"s": f64(0.3), "v": f64([0.1, 0.2]), "l2": f64(0.1)}}


def with_number(take):
    def train_loss(params, x, h):
        w = params["w"]
        return 0.01 * take(w, h) * (w.sum() - x.mean()) ** 2 + h["l2"] * (w**2).sum() + params["b"].sum() ** 2

    return train_loss


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning")  # torch's
@pytest.mark.parametrize("take", TAKEN.values(), ids=TAKEN)
@every_way
def test_a_number_made_of_an_hparam_is_refused(strategy, take):
    """Beside an hparam that is not lost: no derivative is exactly 0."""
    with pytest.raises(RuntimeError, match="takes the number of an hparam that a derivative is asked for"):
        call(with_number(take), strategy, over="loss", hparams=HPARAMS)


def end_of(train_loss, data=DATA, **own):
    return outer(hft.train(SGD, train_loss, start(), data, hparams={"loss": {**HPARAMS["loss"], **own}}).params)


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning")  # torch's
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad:UserWarning")
@pytest.mark.parametrize("name", [name for name in TAKEN if "aten" not in name])
@every_transform
def test_it_is_refused_under_a_transform_that_differentiates_it(transform, name):
    train_loss = with_number(TAKEN[name])
    with pytest.raises(RuntimeError, match="takes the number of an hparam, of the batch, or of what"):
        transform(lambda own: end_of(train_loss, **own))(HPARAMS["loss"])
    with pytest.raises(RuntimeError, match="takes the number of an hparam"):  # also by one further out
        transform(lambda own: torch.func.grad(lambda l2: end_of(train_loss, **{**own, "l2": l2}))(own["l2"]))(
            HPARAMS["loss"]
        )
    got = transform(lambda l2: end_of(train_loss, l2=l2))(HPARAMS["loss"]["l2"])  # s and v are constants
    (want,) = central_differences(lambda l2: end_of(train_loss, l2=l2), HPARAMS["loss"]["l2"])
    assert got.item() == pytest.approx(want.item(), rel=1e-6)


@every_transform
def test_under_a_transform_a_number_of_the_batch_is_refused_and_a_log_is_not(transform):
    def of_the_batch(p, x, h):
        return loss(p, x) * x.exp().mean().item()

    def logged(p, x, h):
        value = h["s"] * loss(p, x)
        with torch.no_grad():
            norms = p["w"].norm(), 2 * h["s"]
            LOG.extend(x.item() for x in norms)
        LOG.extend((value.item(), norms[0].item()))
        return value

    with pytest.raises(RuntimeError, match="takes the number of an hparam, of the batch,"):
        transform(lambda data: end_of(of_the_batch, data))([*DATA])

    def captured(s):
        return end_of(lambda p, x, h: loss(p, x) + s.item() * p["w"].sum() + s * p["b"].sum())

    with pytest.raises(RuntimeError, match="or of what it captures,"):
        transform(captured)(f64(0.3))
    got = transform(lambda s: end_of(logged, s=s))(HPARAMS["loss"]["s"])
    (want,) = central_differences(lambda s: end_of(logged, s=s), HPARAMS["loss"]["s"])
    assert got.item() == pytest.approx(want.item(), rel=1e-6)


WANT_NUMBERS = {
    "label_smoothing": lambda y, s: F.cross_entropy(
        torch.stack([y, -y], 1), torch.arange(len(y)) % 2, label_smoothing=s
    ),
    "leaky_relu": F.leaky_relu,
    "norm": lambda y, s: torch.norm(y, p=s),
    "full": lambda y, s: y * torch.full(y.shape, s),
    "huber": lambda y, s: F.huber_loss(y, 0 * y, delta=s),
}


@pytest.mark.parametrize("name", WANT_NUMBERS)
@every_transform
def test_where_an_operation_wants_a_number_none_is_made_of_an_hparam_under_a_transform(transform, name):
    """An hparam itself torch refuses, but no function of it."""

    def train_loss(p, x, h):
        return WANT_NUMBERS[name](hidden(p, x).sum(1), h["s"].sigmoid()).mean() + loss(p, x)

    transform(lambda v: end_of(train_loss, v=v))(HPARAMS["loss"]["v"])  # for which s is a constant
    with pytest.raises(RuntimeError, match="takes the number of an hparam"):
        transform(lambda s: end_of(train_loss, s=s))(HPARAMS["loss"]["s"])


CONSTANT = {
    "detached": lambda p, h: h["s"].detach().sigmoid().item(),
    "a comparison": lambda p, h: 2.0 if bool(h["s"] > 0) else 1.0,
    "as_tensor of a tensor": lambda p, h: torch.as_tensor(h["s"]),
    "as_tensor by name": lambda p, h: torch.as_tensor(data=h["s"].exp()),
    "a text": lambda p, h: len(f"{h['s']:.1f}"),
}


@pytest.mark.parametrize("name", CONSTANT)
def test_what_is_constant_or_a_tensor_is_left_alone(name):
    train_loss = with_number(CONSTANT[name])
    grads = call(train_loss, hft.Unroll(), over="loss", hparams=HPARAMS)[1]["loss"]
    for entry in ("l2", "s") if "as_tensor" in name else ("l2",):

        def at(x, entry=entry):
            changed = {"loss": {**HPARAMS["loss"], entry: x}}
            return call(train_loss, hft.Unroll(checkpoint=False), over="lr", hparams=changed)[0]

        want = central_differences(at, HPARAMS["loss"][entry])[0].item()
        assert grads[entry].item() == pytest.approx(want, rel=1e-6, abs=1e-12)
    assert ("as_tensor" in name) == bool(grads["s"])
    under = torch.func.grad(lambda own: end_of(train_loss, **own))(HPARAMS["loss"])
    torch.testing.assert_close((under["l2"], under["s"]), (grads["l2"], grads["s"]), rtol=1e-9, atol=1e-12)


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


#: What becomes of the loss in the third step; the number alone leaves the graph what it was.
LATER = {"another graph": lambda p, y, h: y + p["w"].mean() * h.item(), "the same graph": lambda p, y, h: y * float(h)}


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")  # torch's own, once
@pytest.mark.parametrize("later", LATER.values(), ids=LATER)
@pytest.mark.parametrize(
    "strategy", [hft.Unroll(), hft.Unroll(checkpoint=False), hft.Unroll(checkpoint=1), hft.Forward()], ids=repr
)
def test_what_a_later_step_does_is_seen(later, strategy):
    """Also in a second training, of which the loss is known."""

    def train_loss(p, x, h):
        y = hidden(p, x).square().mean() * h
        return later(p, y, h) if x.mean() == 2 else y * 1.0

    data = [torch.full((2, 3), x, dtype=F64) for x in (0.0, 1.0, 2.0, 1.0)]
    given = (train_loss, strategy, "loss", {"loss": f64(0.5)}, lambda p: p["w"].sum())
    for _ in range(2):
        call(*given, data=data[:2])
        with pytest.raises(RuntimeError, match="takes the number of an hparam"):
            call(*given, data=data)


# -- leaves of its own ------------------------------------------------------------------------------------------------


def assigned(x):
    x.requires_grad = True
    return x


LEAVES = {
    "requires_grad_ of the batch": lambda x: x.requires_grad_(),
    "requires_grad = of the batch": assigned,
    "requires_grad_": lambda x: x.detach().requires_grad_(),
    "requires_grad =": lambda x: assigned(x.detach()),
    "requires_grad=": lambda x: torch.tensor(x.tolist(), dtype=x.dtype, requires_grad=True),
}


def pinn(how):
    """Params, and the residual of a differential equation: a derivative in the input, which is no param."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()

    def train_loss(params, x):
        x = LEAVES[how](x)
        u = torch.func.functional_call(net, params, (x,))
        (du,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        return (du[:, :1] - u).square().mean()

    return {name: p.detach() for name, p in net.named_parameters()}, train_loss


def points():
    return [torch.rand(5, 2, dtype=F64) for _ in range(3)]


@pytest.mark.parametrize("how", LEAVES)
@every_way
def test_a_derivative_in_the_input_inside_a_loss_is_right(strategy, how):
    params, train_loss = pinn(how)
    given = {"params": params, "data": points(), "outer_loss": lambda p: sum(x.square().sum() for x in p.values())}
    got = slope(train_loss, strategy, **given)
    assert got.item() == pytest.approx(differences(train_loss, **given), rel=1e-6)


@pytest.mark.parametrize("asked", [False, True])
def test_a_batch_that_a_loss_lets_require_grad_is_not_the_callers(asked):
    (params, train_loss), data = pinn("requires_grad_ of the batch"), points()
    hft.train(SGD, train_loss, params, data, hparams={"lr": f64(0.1).requires_grad_(asked)})
    assert not any(x.requires_grad for x in data)


def test_a_stranger_beside_a_leaf_of_its_own_is_refused_or_counts():
    params, train_loss = pinn("requires_grad_")
    stranger, data = f64(0.5).requires_grad_(), points()

    def end(x, strategy=None):
        return hft.train(SGD, lambda p, b: train_loss(p, b) * x, params, data, strategy=strategy).params["0.bias"].sum()

    with pytest.raises(ValueError, match=r"uses a tensor of shape \(\) .* its derivative would be lost"):
        end(stranger, hft.Unroll(checkpoint=1))
    (got,) = torch.autograd.grad(end(stranger), stranger)
    assert got.item() == pytest.approx(central_differences(end, f64(0.5))[0].item(), rel=1e-6)


def test_a_gradient_inside_a_loss_under_several_transforms_is_right_or_an_error_with_a_way_out():
    """By a strategy that is not exact, the loss is looked at without a graph there."""

    def end(h, strategy, take):
        def train_loss(p, x, h):
            fit = lambda p: h * (p - x).square().sum() + p.square().square().sum()  # noqa: E731
            return fit(p) + 0.1 * take(fit, p).square().sum()

        opt, data = hft.sgd(lr=0.02), [f64([1.0])] * 150
        return hft.train(opt, train_loss, f64([0.5]), data, hparams={"loss": h}, strategy=strategy).params

    def by_autograd(f, x):
        return torch.autograd.grad(f(x), x, create_graph=True)[0]

    def each(strategy, take):
        slope = torch.func.grad(lambda h: end(h, strategy, take).sum())
        return torch.func.vmap(slope)(torch.tensor([0.5, 1.0], dtype=F64))

    how = hft.Implicit(iterations=300)
    want = each(hft.Unroll(), by_autograd)
    torch.testing.assert_close(each(how, lambda f, x: torch.func.grad(f)(x)), want, rtol=1e-6, atol=0)
    with pytest.raises(RuntimeError, match="takes a gradient itself .*take torch.func.grad in it"):
        each(how, by_autograd)


def test_random_numbers_are_drawn_once_where_the_loss_is_looked_at_again():
    params, inner = pinn("requires_grad_")

    def train_loss(p, x):
        return inner(p, x + torch.randn_like(x))

    found, data = [], [torch.zeros(5, 2, dtype=F64)] * 3
    for grad in (False, True):
        torch.manual_seed(3)
        with torch.set_grad_enabled(grad):
            found.append(hft.train(SGD, train_loss, params, data).losses)
    assert torch.equal(*found)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call(train_loss, params=params, data=data, outer_loss=lambda p: p["0.bias"].sum())
