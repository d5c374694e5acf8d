"""What people do to train that no table of losses holds: things changed in between, odd data, threads, memory."""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict, namedtuple

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence
from torch.utils.checkpoint import checkpoint

import hyperopt_ftp as hft
from hyperopt_ftp import tree
from hyperopt_ftp.hyper.core.vjp import pull

from ..support.problems import central_differences

F64 = torch.float64
X = torch.arange(1.0, 4.0, dtype=F64)
DATA = [X * (i + 1) / 3 for i in range(4)]
W = torch.full((3,), 0.3, dtype=F64)
SGD = hft.sgd(lr=0.1, momentum=0.9, weight_decay=0.1)
AGAIN = hft.Unroll(checkpoint=1)
UNROLLED = {
    "small graphs": hft.Unroll(),
    "every step": AGAIN,
    "every second": hft.Unroll(checkpoint=2),
    "graphs": hft.Unroll(checkpoint=False),
    "tree": hft.Unroll(checkpoint="log"),
    "within memory": hft.Unroll(checkpoint="auto", memory=2**30),
}
STRATEGIES = UNROLLED | {
    "forward": hft.Forward(),
    "implicit": hft.Implicit(tolerance=10.0),
    "zero order": hft.ZeroOrder(3, 1e-3),
}
every_unroll = pytest.mark.parametrize("strategy", UNROLLED.values(), ids=UNROLLED)
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)


def loss(p: Tensor, x: Tensor) -> Tensor:
    return ((p - x) ** 2).sum() + 0.01 * (p**4).sum()


def leaf(x: float) -> Tensor:
    return torch.tensor(x, dtype=F64, requires_grad=True)


def run(lr: Tensor, strategy=None, opt=SGD, train_loss=loss, params=W, data=DATA, state=None, own=None):
    hparams = {**opt.hparams, "lr": lr} | ({} if own is None else {"loss": own})
    return hft.train(opt, train_loss, params, data, hparams=hparams, state=state, strategy=strategy)


def own_optimizer(update, state=()):
    return hft.Optimizer(lambda params, hparams=None: state, update, {"lr": torch.tensor(0.1, dtype=F64)})


# -- random numbers ---------------------------------------------------------------------------------------------


def langevin(grads, state, params, hparams):
    return params - hparams["lr"] * grads + 0.1 * hparams["lr"].sqrt() * torch.randn_like(params), state


@pytest.mark.parametrize("strategy", [*UNROLLED.values(), hft.Forward()], ids=[*UNROLLED, "forward"])
def test_an_update_draws_the_same_numbers_again(strategy):
    opt = own_optimizer(langevin)

    def drawing(p, x):  # the update's numbers are not those that the step begins with
        return loss(p * torch.rand_like(p), x)

    def value(lr):
        torch.manual_seed(0)
        return loss(run(lr, strategy, opt, train_loss=drawing).params, X)

    lr = leaf(0.1)
    got = torch.autograd.grad(value(lr), lr)[0]
    assert got.item() == pytest.approx(central_differences(value, lr.detach())[0].item(), rel=1e-6)
    assert value(lr).item() == value(lr.detach()).item()  # the numbers of the plain loop
    twice = torch.autograd.grad(torch.autograd.grad(value(lr), lr, create_graph=True)[0], lr)[0]
    slope = lambda x: torch.autograd.grad(value(x := x.detach().requires_grad_()), x)[0]  # noqa: E731
    assert twice.item() == pytest.approx(central_differences(slope, lr.detach())[0].item(), rel=1e-5)


@pytest.mark.parametrize("scale", [1e-6, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_random_numbers_of_ones_own_are_seen_at_any_scale_and_dtype(dtype, scale):
    generator = torch.Generator().manual_seed(0)

    def noisy(p, x):
        mask = (torch.rand(3, generator=generator) > 0.1).to(dtype)
        return scale * loss(p * mask, x.to(dtype))

    opt = hft.sgd(momentum=0.9)
    end = run(leaf(0.1 / scale), opt=opt, train_loss=noisy, params=W.to(dtype), data=DATA * 3, strategy=AGAIN)
    with pytest.raises(RuntimeError, match="must be the same function of its arguments each time"):
        end.params.sum().backward()


def test_noise_in_a_gradient_alone_is_seen():
    generator = torch.Generator().manual_seed(0)

    def noisy(p, x):
        q = p * 1.0
        q.register_hook(lambda g: g * (1 + 1e-3 * torch.rand(3, generator=generator, dtype=F64)))
        return loss(q, x)

    with pytest.raises(RuntimeError, match="or its gradient is another"):
        run(leaf(0.1), train_loss=noisy, strategy=AGAIN).params.sum().backward()


# -- derivatives that are easily taken of the wrong thing ----------------------------------------------------------


def test_create_graph_where_one_param_is_made_of_another():
    def lookahead(g, state, p, h):
        fast = p["f"] - h["lr"] * g["f"]
        return {"f": fast, "s": p["s"] - h["lr"] * g["s"] + 0.5 * (fast - p["s"])}, state

    def both(p, x):
        return ((p["f"] - x) ** 2).sum() + 0.3 * (p["s"] * p["f"]).sum() + 0.1 * (p["s"] ** 3).sum()

    def value(lr):
        return both(run(lr, opt=own_optimizer(lookahead), train_loss=both, params={"f": W, "s": W}).params, X)

    lr = leaf(0.1)
    first = torch.autograd.grad(value(lr), lr)[0]
    again = torch.autograd.grad(value(lr), lr, create_graph=True)[0]
    assert again.item() == pytest.approx(first.item(), rel=1e-12)
    assert first.item() == pytest.approx(torch.func.grad(value)(lr.detach()).item(), rel=1e-12)


def test_truncated_at_all_steps_the_start_is_constant_everywhere():
    def slopes(x):
        lr, w = x
        return run(lr, hft.Unroll(truncate=4), params=w).params.sum()

    x = [leaf(0.1), W.clone().requires_grad_()]
    eager = torch.autograd.grad(slopes(x), x, materialize_grads=True)
    under = torch.func.grad(slopes)([v.detach() for v in x])
    torch.testing.assert_close(list(eager), under, rtol=1e-12, atol=0)
    assert torch.equal(eager[1], torch.zeros_like(W))


@pytest.mark.parametrize(
    "strategy", [hft.Unroll(truncate=2), hft.Implicit(tolerance=10.0)], ids=["truncated", "implicit"]
)
def test_integers_and_none_in_a_batch_reach_the_loss(strategy):
    def masked(p, b, h):
        assert b["none"] is None
        return ((p - b["x"]) ** 2 * b["mask"]).sum() / h["n"] + 0.01 * (p**4).sum()

    data = [{"x": x, "mask": torch.tensor([1, 0, 1]), "none": None, "name": "a"} for x in DATA]

    def slope(transform):
        f = lambda lr: run(lr, strategy, train_loss=masked, data=data, own=own).params.sum()  # noqa: E731
        if transform:
            return torch.func.grad(f)(torch.tensor(0.1, dtype=F64))
        lr = leaf(0.1)
        return torch.autograd.grad(f(lr), lr)[0]

    own = {"n": torch.tensor(3)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Implicit has not converged
        torch.testing.assert_close(slope(True), slope(False), rtol=1e-12, atol=1e-14)


def test_conjugate_gradients_may_rise_on_the_way_and_refuse_a_saddle():
    """A residual of 19 times the start after one product, for a matrix that is positive; and one that is not."""

    def bowl(p, x, h):
        return (h["a"] * p**2).sum() / 2 - (x * p).sum()

    def slope(a, **options):
        own = {"a": torch.tensor(a, dtype=F64, requires_grad=True)}
        opt, x = hft.sgd(lr=1.0), torch.tensor([0.01, 1.0], dtype=F64)
        p = x / own["a"].detach()
        end = hft.train(opt, bowl, p, [x], hparams={**opt.hparams, "loss": own}, strategy=hft.Implicit("cg", **options))
        return torch.autograd.grad((end.params * torch.tensor([1.0, 20.0])).sum(), own["a"])[0], -p / own["a"]

    with pytest.warns(UserWarning, match="has not converged"):
        slope([1.0, 1e-4], iterations=1)
    got, each = slope([1.0, 1e-4], iterations=5)
    torch.testing.assert_close(got, (each * torch.tensor([1.0, 20.0])).detach(), rtol=1e-8, atol=0)
    with pytest.raises(ArithmeticError, match="not symmetric and positive"):
        slope([1.0, -0.003], iterations=1)


# -- things changed in between -------------------------------------------------------------------------------------


@every_strategy
@pytest.mark.parametrize("what", ["params", "state", "weight_decay", "batch", "result"])
def test_what_was_changed_in_place_before_backward_is_an_error(what, strategy):
    params, state, data = W.clone(), SGD.init(W), [x.clone() for x in DATA]
    lr, decay = leaf(0.1), torch.tensor(0.1, dtype=F64)
    hparams = {**SGD.hparams, "lr": lr, "weight_decay": decay}
    end = hft.train(SGD, loss, params, data, hparams=hparams, state=state, strategy=strategy)
    value = loss(end.params, X)
    changed = {"params": params, "state": state.momentum_buffer, "weight_decay": decay, "batch": data[-1]}
    (end.params.detach() if what == "result" else changed[what]).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_backward_under_another_autocast_than_forward():
    def half(p, x):
        return ((x.view(1, 3).float() @ p.view(3, 1).float()).float() - 1).square().sum() + p.square().sum()

    def slope(forward, backward):
        lr = leaf(0.1)
        with torch.autocast("cpu", torch.bfloat16, enabled=forward):
            value = run(lr, train_loss=half).params.sum()
        with torch.autocast("cpu", torch.bfloat16, enabled=backward):
            return torch.autograd.grad(value, lr)[0]

    assert torch.equal(slope(False, True), slope(False, False))
    assert torch.equal(slope(True, False), slope(True, True))
    assert not torch.equal(slope(True, True), slope(False, False))


@pytest.mark.parametrize("least", [0.0, 5.0], ids=["each step", "later steps"])
def test_a_module_that_checkpoints_inside_functional_call_is_refused(least):
    """Its backward pass would run with the module's own weights, not with the params."""

    class Checkpointed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1)).double()

        def forward(self, x):
            return checkpoint(self.inner, x, use_reentrant=False) if x.sum() > least else self.inner(x)

    net = Checkpointed()
    params = {name: p.detach() for name, p in net.named_parameters()}
    inner = {name.removeprefix("inner."): p for name, p in params.items()}

    def outside(p, x):
        return torch.func.functional_call(net, p, (x,)).square().sum()

    def inside(p, x):
        return checkpoint(torch.func.functional_call, net.inner, p, (x,), use_reentrant=False).square().sum()

    with pytest.raises(RuntimeError, match="checkpoints activations inside a module"):
        run(leaf(0.1), train_loss=outside, params=params)
    lr = leaf(0.1)
    outside_of_checkpoints = lambda p, x: torch.func.functional_call(net.inner, p, (x,)).square().sum()  # noqa: E731
    got, want = (
        torch.autograd.grad(tree.leaves(run(lr, train_loss=f, params=inner).params)[0].sum(), lr)[0]
        for f in (inside, outside_of_checkpoints)
    )
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)


@every_unroll
def test_params_without_entries(strategy):
    lr = leaf(0.1)
    trained = run(lr, strategy, train_loss=lambda p, x: (p.sum() + 1) * x.sum(), params=W[:0])
    assert trained.losses.tolist() == [x.sum().item() for x in DATA]
    assert torch.autograd.grad(trained.params.sum(), lr)[0] == 0


# -- odd data ---------------------------------------------------------------------------------------------------------


class Endless:
    """A data set by index whose ``__getitem__`` never ends, and takes ints alone."""

    def __len__(self):
        return 4

    def __getitem__(self, i):
        if not isinstance(i, int):
            raise TypeError("an int")
        return X * (i % 4 + 1) / 3


@every_strategy
def test_a_sequence_of_ones_own_is_read_by_its_length(strategy):
    def slope(data):
        torch.manual_seed(0)
        lr = leaf(0.1)
        return torch.autograd.grad(run(lr, strategy, data=data).params.sum(), lr, materialize_grads=True)[0]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        assert torch.equal(slope(Endless()), slope(DATA))
    run(torch.tensor(0.1, dtype=F64), strategy, data=Endless())


def test_bilevel_reads_tensors_and_data_sets_at_the_place_of_its_state():
    def values(data, state=None):
        records = hft.bilevel(
            SGD, hft.sgd(lr=1e-4), "lr", loss, loss, W, data, DATA, inner_steps=3, outer_steps=4, state=state
        )
        return list(records)

    for data in (torch.stack(DATA), Endless()):
        whole = values(data)
        assert [r.value for r in values(data, whole[1].state)] == [r.value for r in whole[2:]]
        assert [r.value for r in whole] == [r.value for r in values(DATA)]


@every_unroll
def test_a_tensor_that_the_loss_makes_may_be_written_into(strategy):
    def summed(p, x):
        total = torch.tensor(0.0, dtype=F64)
        total += loss(p, x)
        return total

    lr = leaf(0.1)
    got, want = (torch.autograd.grad(run(lr, strategy, train_loss=f).params.sum(), lr)[0] for f in (summed, loss))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)


def test_complex_tensors_are_refused_where_a_derivative_would_be_lost():
    z = torch.ones(3, dtype=torch.complex128, requires_grad=True)
    with pytest.raises(ValueError, match=r"complex tensor of .* requires grad: .*view_as_real"):
        run(leaf(0.1), own={"z": z}, train_loss=lambda p, x, h: loss(p, x * h["z"].real))

    def rotating(g, state, p, h):
        state = 0.5 * state + torch.fft.fft(g)
        return p - h["lr"] * torch.fft.ifft(state).real, state

    opt = own_optimizer(rotating, torch.zeros(3, dtype=torch.complex128))
    with pytest.raises(ValueError, match="optimizer's state has a complex tensor"):
        run(leaf(0.1), opt=opt)
    assert run(torch.tensor(0.1, dtype=F64), opt=opt).params.shape == (3,)


@every_strategy
def test_state_with_leaves_that_are_no_tensors(strategy):
    opt = own_optimizer(lambda g, s, p, h: (p - h["lr"] * g, {"t": s["t"] + 1, "none": None}), {"t": 0, "none": None})
    lr = leaf(0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        end = run(lr, strategy, opt)
        end.params.sum().backward()
    assert end.state == {"t": 4, "none": None}


def test_paths_into_named_tuples_and_ordered_dicts():
    pair = namedtuple("pair", "a b")

    def named(p, b, h):
        assert isinstance(b, OrderedDict)
        assert isinstance(h, pair)
        return h.a * ((p - b["x"]) ** 2).sum() + h.b * p.sum()

    own = pair(torch.tensor(0.7, dtype=F64), torch.tensor(0.1, dtype=F64))
    data = [OrderedDict(x=x) for x in DATA]
    _, grads, _ = hft.hypergradient(
        SGD, named, lambda p: p.sum(), W, data, ("loss.0", "batches.1.x"), {**SGD.hparams, "loss": own}
    )
    want = central_differences(
        lambda a: run(torch.tensor(0.1, dtype=F64), train_loss=named, data=data, own=pair(a, own.b)).params.sum(), own.a
    )
    assert grads["loss.0"].item() == pytest.approx(want[0].item(), rel=1e-8)
    assert grads["batches.1.x"].shape == (3,)


@pytest.mark.parametrize("strategy", [None, AGAIN, hft.Forward(chunk=1)], ids=["kept", "again", "forward"])
def test_a_recurrent_net_over_packed_sequences(strategy):
    """PackedSequence is a namedtuple that checks what it is made of."""
    torch.manual_seed(0)
    net = torch.nn.GRU(4, 3).double()
    weights = {name: w.detach() for name, w in net.named_parameters()}
    data = [pack_sequence([torch.randn(n, 4, dtype=F64) for n in (3, 2)]) for _ in range(3)]

    def squared(p, x):
        return torch.func.functional_call(net, p, (x,))[0].data.square().mean()

    def value(lr, strategy=None):
        return squared(run(lr, strategy, train_loss=squared, params=weights, data=data).params, data[0])

    lr = torch.tensor(0.1, dtype=F64)
    want = central_differences(value, lr)[0].item()
    lr.requires_grad_()
    got = torch.autograd.grad(value(lr, strategy), lr)[0]
    assert got.item() == pytest.approx(want, rel=1e-6)


def test_forward_over_sparse_tensors_names_the_way_out():
    torch.manual_seed(0)
    edges, features = (torch.rand(5, 5, dtype=F64) > 0.5).double().to_sparse(), torch.randn(5, 3, dtype=F64)

    def graph(p, x):
        return torch.tanh(torch.sparse.mm(edges, (features * p * x).sum(1, keepdim=True))).square().mean()

    def slopes(strategy):
        given = (SGD, graph, lambda p: p.square().sum(), W, DATA, ("lr", "momentum"))
        return hft.hypergradient(*given, strategy=strategy)[1]

    with pytest.raises(RuntimeError, match=r"vmap cannot take this loss: .*Sparse.*; take hft\.Forward\(chunk=1\)"):
        slopes(hft.Forward())
    torch.testing.assert_close(slopes(hft.Forward(chunk=1)), slopes(hft.Unroll()), rtol=1e-10, atol=0)


def test_an_error_of_memory_under_forward_keeps_its_class():
    def full(_):
        raise torch.OutOfMemoryError("no memory")

    x = leaf(1.0)
    y = 2 * x
    y.register_hook(full)
    with pytest.raises(torch.OutOfMemoryError, match="^no memory$"):
        pull([y], [torch.ones(2, dtype=F64)], [x], rows=True)


def test_zero_order_over_what_vmap_cannot_take():
    opt = hft.from_torchopt(__import__("torchopt").sgd, lr=0.1, momentum=0.5)
    with pytest.warns(UserWarning, match="one after the other"):
        _, grads, _ = hft.hypergradient(
            opt, loss, lambda p: p.sum(), W, DATA, "momentum", strategy=hft.ZeroOrder(4, 1e-3)
        )
    assert grads["momentum"] != 0


def test_zero_order_counts_errors_where_vmap_cannot_be_used():
    opt = hft.from_torchopt(__import__("torchopt").sgd, lr=0.1, momentum=0.5)
    strategy = hft.ZeroOrder(8, 0.3, generator=torch.Generator().manual_seed(0))
    end = hft.train(opt, loss, W, DATA).params.detach()
    with pytest.warns(UserWarning, match="one after the other"):
        value, grads, _ = hft.hypergradient(
            opt, loss, lambda p: (p > end).sum(), W, DATA, "momentum", strategy=strategy
        )
    assert not value.is_floating_point()
    assert grads["momentum"] != 0


@pytest.mark.parametrize("kind", ["log", "logit"])
def test_a_map_of_a_users_own_hparam_never_leaves_its_range(kind):
    def own(p, x, h):
        return loss(p, x) + h["l2"].double() * (p**2).sum()

    records = list(
        hft.bilevel(
            SGD, hft.adam(lr=200.0), "loss.l2", own, lambda p, x: -loss(p, x), W, DATA, DATA, inner_steps=1,
            outer_steps=6, reset=W, constrain={"loss.l2": kind}, not_finite="skip",
            hparams={**SGD.hparams, "loss": {"l2": torch.tensor(0.9)}},
        )
    )  # fmt: skip
    for record in records:
        x = record.tuned["loss.l2"]
        assert x.isfinite()
        assert 0 < x < (1 if kind == "logit" else float("inf"))


# -- the process ------------------------------------------------------------------------------------------------------


@every_unroll
def test_what_a_node_keeps_is_freed_by_backward(strategy):
    """As torch frees what it has saved, unless the graph is kept."""
    for keep in (True, False):
        value = run(leaf(0.1), strategy, data=DATA * 5).params.sum()
        job = value.grad_fn.next_functions[0][0].job
        assert job.residual is not None
        value.backward(retain_graph=keep)
        assert (job.residual is None) is not keep


@pytest.mark.skipif(
    torch.__version__ < (2, 13), reason="torch 2.10 compiles no more after modes ran in two threads at once"
)
def test_threads_leave_the_settings_of_the_process_as_they_were():
    before = torch.backends.cuda.flash_sdp_enabled()
    failed = []

    def work():
        try:
            for _ in range(5):
                lr = leaf(0.1)
                run(lr, hft.Unroll(checkpoint=2)).params.sum().backward()
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert torch.backends.cuda.flash_sdp_enabled() is before is True
    assert torch._dynamo.eval_frame._stance.stance == "default"


@pytest.mark.parametrize("strategy", [hft.Unroll(checkpoint=kind) for kind in ("sqrt", "log")], ids=["sqrt", "log"])
def test_one_node_may_be_walked_back_by_several_threads(strategy):
    lr = leaf(0.1)
    value = run(lr, strategy, data=DATA * 4).params.sum()
    want = torch.autograd.grad(value, lr, retain_graph=True)[0]
    found = []

    def work():
        for _ in range(4):
            found.append(torch.autograd.grad(value, lr, retain_graph=True)[0])

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 12
    assert all(torch.equal(x, want) for x in found)


def test_tangents_of_eager_forward_mode_are_refused():
    from torch.autograd import forward_ad

    with forward_ad.dual_level(), pytest.raises(ValueError, match="use torch.func.jvp"):
        run(forward_ad.make_dual(torch.tensor(0.1, dtype=F64), torch.ones((), dtype=F64)))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo's own, at the break
def test_compiled_code_around_train_breaks_its_graph_there():
    def value(lr):
        return 2 * run(lr).params.sum()

    lr = leaf(0.1)
    got, want = (torch.autograd.grad(f(lr), lr)[0] for f in (torch.compile(value, backend="aot_eager"), value))
    assert torch.equal(got, want)


# -- what a reader and a new user found ----------------------------------------------------------------------------


def own_loss(p, x, h):
    return loss(p, x) + h["s"] * p.sum()


def test_the_number_of_an_hparam_is_no_way_around_its_derivative():
    for number in (float, Tensor.item):
        with pytest.raises(RuntimeError, match="takes the number of an hparam that a derivative is asked for"):
            run(leaf(0.1), own={"s": leaf(0.2)}, train_loss=lambda p, x, h, f=number: loss(p, x) + f(h["s"]) * p.sum())
    shown = []
    run(
        leaf(0.1),
        own={"s": leaf(0.2)},
        train_loss=lambda p, x, h: shown.append(own_loss(p, x, h).detach().item()) or own_loss(p, x, h),
    )
    assert len(shown) == 4  # the number of what was computed may be shown


def test_zero_order_can_be_differentiated_again_under_a_transform():
    def value(w):
        torch.manual_seed(0)
        return hft.hypergradient(SGD, loss, lambda p: loss(p, X), w, DATA, "lr", strategy=hft.ZeroOrder(3, 1e-3))[0]

    want = torch.func.grad(lambda w: loss(run(torch.tensor(0.1, dtype=F64), params=w).params, X))(W)
    torch.testing.assert_close(torch.func.grad(value)(W), want, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "strategy", [hft.Unroll(), hft.Implicit(tolerance=10.0), hft.ZeroOrder(2, 1e-3)], ids=lambda s: type(s).__name__
)
def test_a_round_that_ends_in_nan_is_taken_back_whatever_its_slopes(strategy):
    def lost(p, x):
        return (p * torch.where(x.sum() > 7, torch.nan, x)).sum()

    def outer(p, x):
        return p.isnan().to(F64).sum() if isinstance(strategy, hft.ZeroOrder) else loss(p, x)

    def rounds(not_finite):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return list(
                hft.bilevel(
                    hft.sgd(lr=0.1), hft.sgd(lr=1e-3), "lr", lost, outer, W, DATA, DATA, inner_steps=1, outer_steps=6,
                    strategy=strategy, not_finite=not_finite,
                )
            )  # fmt: skip

    records = rounds("skip")
    assert all(r.state.params.isfinite().all() for r in records)
    assert records[3].skipped == ("lr",)
    assert torch.equal(records[3].state.params, records[2].state.params)
    with pytest.raises(FloatingPointError, match="at outer step 4"):
        rounds("error")


@pytest.mark.parametrize(
    "make", [torch.nn.ParameterList, lambda data: type("Rows", (list,), {})(data)], ids=["parameters", "own list"]
)
def test_lists_of_other_classes_are_lists(make):
    data = make([x.clone().requires_grad_() for x in DATA])
    grads = torch.autograd.grad(run(torch.tensor(0.1, dtype=F64), data=data).params.sum(), list(data))
    assert all((g != 0).all() for g in grads)


def test_a_lazy_batch_that_requires_grad_is_no_constant():
    class Rows(Endless):
        def __getitem__(self, i):
            return super().__getitem__(i).requires_grad_()

    with pytest.raises(ValueError, match="batches is a sequence that is no list, and a tensor .* Pass a list"):
        run(leaf(0.1), data=Rows())


def test_forward_ends_where_the_loop_ends_in_16_bits():
    opt = own_optimizer(
        lambda g, s, p, h: ((p - h["lr"] * g).to(p.dtype), s + g.sum().to(s.dtype)),
        torch.zeros((), dtype=torch.bfloat16),
    )
    w = W.to(torch.bfloat16)
    short = lambda p, x: loss(p, x.to(p.dtype))  # noqa: E731
    ends = [run(lr, hft.Forward(), opt, short, w) for lr in (leaf(0.1), torch.tensor(0.1, dtype=F64))]
    assert ends[0].params.dtype == ends[0].state.dtype == torch.bfloat16
    assert torch.equal(ends[0].params, ends[1].params)
    assert torch.equal(ends[0].state, ends[1].state)


@pytest.mark.parametrize(
    ("act", "text"),
    [
        (lambda: run(leaf(0.1), train_loss=own_loss), "train_loss has 3 arguments, the last .* no entry 'loss'"),
        (lambda: run(leaf(0.1), own={"s": leaf(0.2)}), "train_loss has no argument for it: it is argument 3"),
        (
            lambda: hft.train(SGD, loss, W, DATA, hparams={**SGD.hparams, "momentun": 0.1}),
            "did you mean 'momentum'.*the loss's are under 'loss'",
        ),
        (lambda: hft.hypergradient(SGD, loss, loss, W, DATA, over="momentun"), "did you mean 'momentum'"),
        (
            lambda: hft.hypergradient(SGD, own_loss, sum, W, DATA, "s", {**SGD.hparams, "loss": {"s": leaf(0.1)}}),
            "did you mean 'loss.s'",
        ),
        (
            lambda: hft.train(SGD, loss, torch.nn.Linear(2, 2), DATA),
            "got a Linear; of a module take dict.*functional_call",
        ),
        (lambda: hft.hyper(SGD, by=hft.sgd(), over="lr", strategy=hft.Unroll()), "or needs the loss"),
        (lambda: hft.Unroll(checkpoint=False, offload=True), "leave offload out"),
        (lambda: hft.Unroll(checkpoint=True), "checkpoint must be a number of steps"),
        (
            lambda: hft.bilevel(SGD, SGD, "lr", loss, lambda p: p.sum(), W, DATA, DATA, inner_steps=1, outer_steps=1),
            r"outer_loss takes \(params, batch\)",
        ),
        (
            lambda: hft.bilevel(
                SGD, torch.optim.SGD([leaf(1.0)]), "lr", loss, loss, W, DATA, DATA, inner_steps=1, outer_steps=1
            ),
            "functools.partial",
        ),
    ],
)
def test_wrong_uses_that_a_newcomer_tried(act, text):
    with pytest.raises((TypeError, ValueError), match=text):
        act()


def test_where_no_derivative_can_be_meant_a_leaf_beside_the_arguments_is_a_number():
    beside = leaf(0.3)

    def uses(p, x):
        return loss(p, x) + beside * p.sum()

    lr = torch.tensor(0.1, dtype=F64)
    with pytest.raises(ValueError, match="no argument of train"):
        run(lr, train_loss=uses)
    with torch.no_grad():
        got = run(lr, train_loss=uses).params
    assert torch.equal(got, run(lr, train_loss=lambda p, x: loss(p, x) + 0.3 * p.sum()).params)


@pytest.mark.filterwarnings("ignore:the hypergradient of 'lr' is exactly 0")
def test_an_outer_loss_without_a_graph_leaves_none_behind():
    _, grads, end = hft.hypergradient(SGD, loss, lambda p: torch.ones(()), W, DATA, "lr")
    assert grads["lr"] == 0
    assert not any(x.requires_grad for x in tree.leaves(end))


def test_attention_of_other_devices_goes_by_the_formula_too():
    """Of those that bring kernels of their own; torch switches them by a name without a public one."""
    enabled, seen = torch._C._get_overrideable_sdp_enabled, []

    def looking(p, x):
        seen.append(enabled())
        return loss(p, x)

    assert enabled()
    hft.hypergradient(SGD, looking, lambda p: loss(p, DATA[0]), W, DATA, "lr")
    assert not any(seen)
    assert enabled()


def test_settings_of_the_process_are_left_where_one_of_them_cannot_be_had(monkeypatch):
    def refused(stance):
        raise RuntimeError("not here")

    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "set_stance", refused)
        with pytest.raises(RuntimeError, match="not here"):
            run(leaf(0.1))
    assert torch.backends.cuda.flash_sdp_enabled()
    run(leaf(0.1)).params.sum().backward()
    assert torch.backends.cuda.flash_sdp_enabled()


def near(p: Tensor, x: Tensor) -> Tensor:
    return ((p - x) ** 2).sum()


def test_a_part_of_the_hparams_is_given_and_the_rest_is_the_optimizers_own():
    opt, w, data, own = hft.adam(lr=0.1), W, DATA, {"l2": torch.tensor(0.5, dtype=F64)}

    def decayed(p: Tensor, x: Tensor, h: dict[str, Tensor]) -> Tensor:
        return near(p, x) + h["l2"] * p.square().sum()

    lr = torch.tensor(0.2, dtype=F64)
    for some, f in (({"lr": lr}, near), ({"loss": own}, decayed), ({"lr": lr, "loss": own}, decayed)):
        both = (some, {**opt.hparams, **some})
        assert torch.equal(*(hft.train(opt, f, w, data, hparams=h).params for h in both))
        found, expected = (hft.hypergradient(opt, f, lambda p: near(p, X), w, data, hparams=h)[1] for h in both)
        assert found.keys() == expected.keys()
        assert torch.equal(found["lr"], expected["lr"])
    state = opt.init(w)
    assert torch.equal(*(opt.update(w + 1, state, w, h)[0] for h in ({"lr": lr}, {**opt.hparams, "lr": lr})))
    with pytest.raises(ValueError, match=r"names among .* got \['Lr'\]; did you mean 'lr'\?"):
        hft.train(opt, near, w, data, hparams={"Lr": lr})


def test_stacked_tensors_are_refused_with_both_readings():
    xs, ys = torch.randn(20, 3), torch.randn(20)
    with pytest.raises(
        TypeError, match=r"a tuple of 2 tensors of one length, .* write list\(batches\) for 2 steps, .*zip"
    ):
        hft.train(SGD, near, W, (xs, ys))
    assert hft.train(SGD, near, W, (X, X + 1)).losses.shape == (2,)  # of one shape they are batches
    with pytest.raises(TypeError, match=r"got dict; give a list with one dict for each step: \[\{name: x\[k\]"):
        hft.train(SGD, near, W, {"x": xs, "y": ys})


def test_losses_that_are_not_finite_are_told_once_at_the_end():
    with pytest.warns(UserWarning, match=r"the training loss of step 1 of 3 is inf, .*smaller learning rate") as told:
        hft.train(hft.sgd(lr=1e200), near, W, DATA[:3])
    assert [x.filename for x in told] == [__file__]
    with pytest.warns(UserWarning, match="the outer loss is not finite, .*look at the losses of hft.train"):
        hft.hypergradient(hft.sgd(lr=1e200), near, lambda p: near(p, X), W, DATA[:3], over="lr")
