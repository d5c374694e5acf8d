"""Calls of torch in a loss: what takes the number of an hparam, and hooks that change a gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import hyperopt_ftp as hft

from ...support.hypergradients import DATA, F64, SGD, call, every_transform, every_way, f64, hidden, outer
from ...support.problems import central_differences, loss, start

# -- numbers of hparams -----------------------------------------------------------------------------------------------

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


# -- gradient hooks ---------------------------------------------------------------------------------------------------

ONE = torch.ones(3, dtype=F64)


def hooked(hook, strategy):
    def loss(p, x):
        h = p.tanh()
        h.register_hook(hook)
        return ((h - x) ** 2).sum()

    lr = torch.tensor(0.1, dtype=F64, requires_grad=True)
    run = hft.train(hft.sgd(), loss, ONE / 2, [ONE] * 3, hparams={"lr": lr}, strategy=strategy)
    return torch.autograd.grad(run.params.sum(), lr)[0].item()


@pytest.mark.parametrize("strategy", [hft.Unroll(checkpoint=False), hft.Unroll(checkpoint=1), hft.Forward()], ids=str)
def test_a_hook_that_changes_a_gradient_is_refused(strategy):
    """It would act on the derivative of the gradient, too."""
    for hook in (lambda g: g / 2, lambda g: g.detach() / 2):
        with pytest.raises(
            RuntimeError, match="a hook that changes a gradient .* in the optimizer instead: hft.clipped"
        ):
            hooked(hook, strategy)
    seen = []
    looked = hooked(lambda g: seen.append(g.norm()), strategy)
    assert seen
    assert looked == pytest.approx(hooked(lambda g: g, strategy), rel=1e-14)
