"""What people do to train that no table of losses holds: things changed in between, odd data, threads, memory."""

from __future__ import annotations

import contextlib
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

import hyperopt_ftp as hft
from hyperopt_ftp import tree

from ..support.hypergradients import drawn
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
    "within memory": hft.Unroll(memory=2**30),
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


@pytest.mark.filterwarnings("ignore:Implicit")  # has not converged
@pytest.mark.parametrize(
    "strategy", [hft.Unroll(truncate=2), hft.Implicit(tolerance=10.0)], ids=["truncated", "implicit"]
)
def test_integers_and_none_in_a_batch_reach_the_loss(strategy):
    def masked(p, b, h):
        assert b["none"] is None
        return ((p - b["x"]) ** 2 * b["mask"]).sum() / h["n"] + 0.01 * (p**4).sum()

    data = [{"x": x, "mask": torch.tensor([1, 0, 1]), "none": None, "name": "a"} for x in DATA]

    def end(lr):
        return run(lr, strategy, train_loss=masked, data=data, own={"n": torch.tensor(3)}).params.sum()

    lr = leaf(0.1)
    want = torch.autograd.grad(end(lr), lr)[0]
    torch.testing.assert_close(torch.func.grad(end)(lr.detach()), want, rtol=1e-12, atol=1e-14)


# -- things changed in between -------------------------------------------------------------------------------------


@every_strategy
@pytest.mark.parametrize("what", ["params", "state", "weight_decay", "batch", "result"])
def test_what_was_changed_in_place_before_backward_is_an_error_or_does_not_matter(what, strategy):
    """Autograd's own graph does not need all of it; a node says so of each."""
    params, state, data = W.clone(), SGD.init(W), [x.clone() for x in DATA]
    lr, decay = leaf(0.1), torch.tensor(0.1, dtype=F64)
    hparams = {**SGD.hparams, "lr": lr, "weight_decay": decay}
    end = hft.train(SGD, loss, params, data, hparams=hparams, state=state, strategy=strategy)
    value = loss(end.params, X)
    if strategy in (hft.Unroll(), hft.Unroll(checkpoint=False)) and what != "result":
        (want,) = torch.autograd.grad(value, lr, retain_graph=True)
        {"params": params, "state": state.momentum_buffer, "weight_decay": decay, "batch": data[-1]}[what].add_(1)
        assert torch.equal(torch.autograd.grad(value, lr)[0], want)
        return
    changed = {"params": params, "state": state.momentum_buffer, "weight_decay": decay, "batch": data[-1]}
    (end.params.detach() if what == "result" else changed[what]).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_backward_under_another_autocast_than_forward_where_steps_are_made_again():
    def half(p, x):
        return ((x.view(1, 3).float() @ p.view(3, 1).float()).float() - 1).square().sum() + p.square().sum()

    def slope(forward, backward):
        lr = leaf(0.1)
        with torch.autocast("cpu", torch.bfloat16, enabled=forward):
            value = run(lr, AGAIN, train_loss=half).params.sum()
        with torch.autocast("cpu", torch.bfloat16, enabled=backward):
            return torch.autograd.grad(value, lr)[0]

    assert torch.equal(slope(False, True), slope(False, False))
    assert torch.equal(slope(True, False), slope(True, True))
    assert not torch.equal(slope(True, True), slope(False, False))


@pytest.mark.parametrize("first", ["outside", "plain", "inside"])
def test_a_module_that_checkpoints_inside_functional_call_is_refused(first):
    """Its backward pass would run with the module's own weights, not with the params; also after other steps."""

    class Checkpointed(torch.nn.Sequential):
        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=False)

    parts = [torch.nn.Linear(3, 3).double(), torch.nn.Tanh(), torch.nn.Linear(3, 1).double()]
    whole, net = Checkpointed(*parts), torch.nn.Sequential(*parts)
    losses = {
        "outside": lambda p, x: torch.func.functional_call(whole, p, (x,)).square().sum(),
        "inside": lambda p, x: checkpoint(torch.func.functional_call, net, p, (x,), use_reentrant=False).square().sum(),
        "plain": lambda p, x: torch.func.functional_call(net, p, (x,)).square().sum(),
    }
    params = {name: p.detach() for name, p in net.named_parameters()}
    with pytest.raises(RuntimeError, match="checkpoints activations inside a module"):
        run(leaf(0.1), train_loss=lambda p, x: losses["outside" if x.sum() > 5 else first](p, x), params=params)
    lr = leaf(0.1)
    got, want = (
        torch.autograd.grad(tree.leaves(run(lr, train_loss=losses[name], params=params).params)[0].sum(), lr)[0]
        for name in ("inside", "plain")
    )
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)


def test_a_loss_that_checkpoints_in_later_steps_only_draws_what_it_would_draw():
    """The step where that is found is begun again, also with its random numbers."""

    def slope(late: bool):
        def dropped(p, x):
            q = torch.nn.functional.dropout(p * x, 0.5)
            return (checkpoint(torch.tanh, q, use_reentrant=False) if late and x > 0.5 else q.tanh()).sum()

        torch.manual_seed(0)
        runs, lr = [], leaf(0.1)
        for _ in range(2):  # the second one knows the loss
            end = hft.train(hft.sgd(lr=lr), dropped, torch.ones(20, dtype=F64), [0.5, 0.5, 1.0, 2.0]).params
            runs.append(torch.autograd.grad(end.square().sum(), lr)[0])
        return torch.stack(runs)

    torch.testing.assert_close(slope(True), slope(False), rtol=1e-12, atol=0)


@pytest.mark.parametrize("how", ["values", "no grad", "hooks of the caller"])
def test_checkpointed_activations_with_other_weights_are_an_error_wherever_they_are_used(how: str):
    class Checkpointed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 4, dtype=F64)

        def forward(self, x):
            return checkpoint(lambda z: self.layer(z).tanh() ** 2, x, use_reentrant=False)

    net = Checkpointed()
    params = {name: 1.5 * p.detach() for name, p in net.named_parameters()}
    around = {"values": contextlib.nullcontext, "no grad": torch.no_grad, "hooks of the caller": save_on_cpu}[how]
    lr = torch.tensor(0.1, dtype=F64, requires_grad=how == "hooks of the caller")
    with around(), pytest.raises(RuntimeError, match="checkpoints activations inside a module"):
        hft.train(
            hft.sgd(lr=lr), lambda p, x: torch.func.functional_call(net, p, (x,)).sum(), params,
            [torch.ones(2, 3, dtype=F64)] * 3,
        )  # fmt: skip


@pytest.mark.parametrize("derived", [False, True])
def test_a_captured_tensor_counts_also_where_the_loss_hides_it(derived: bool):
    """In the second call as in the first: its code and its closures do not show it."""
    hidden = torch.tensor(0.7, dtype=F64, requires_grad=True)

    class Net(torch.nn.Module):
        @property
        def decay(self):
            return hidden

        def forward(self, p, x):
            return ((p - x) ** 2).sum() + self.decay * (p**2).sum()

    def slope(loss):
        lr = torch.tensor(0.05, dtype=F64, requires_grad=derived)
        end = hft.train(hft.sgd(lr=lr), loss, torch.tensor([0.3, -0.5], dtype=F64), [torch.ones(2, dtype=F64)] * 3)
        return torch.autograd.grad((end.params**3).sum(), hidden)[0]

    net = Net()
    found, again = slope(net), slope(net)
    want = slope(lambda p, x: ((p - x) ** 2).sum() + hidden * (p**2).sum())
    torch.testing.assert_close(torch.stack([found, again]), torch.stack([want, want]), rtol=1e-12, atol=0)


@every_unroll
def test_params_without_entries(strategy):
    lr = leaf(0.1)
    trained = run(lr, strategy, train_loss=lambda p, x: (p.sum() + 1) * x.sum(), params=W[:0])
    assert trained.losses.tolist() == [x.sum().item() for x in DATA]
    assert torch.autograd.grad(trained.params.sum(), lr)[0] == 0


# -- odd data ---------------------------------------------------------------------------------------------------------


def test_complex_tensors_are_refused_where_a_derivative_would_be_lost():
    z = torch.ones(3, dtype=torch.complex128, requires_grad=True)
    with pytest.raises(ValueError, match=r"complex tensor of .* requires grad: .*view_as_real"):
        run(leaf(0.1), own={"z": z}, train_loss=lambda p, x, h: loss(p, x * h["z"].real))

    def rotating(g, state, p, h):
        state = 0.5 * state + torch.fft.fft(g)
        return p - h["lr"] * torch.fft.ifft(state).real, state

    opt = own_optimizer(rotating, torch.zeros(3, dtype=torch.complex128))
    with pytest.raises(ValueError, match="optimizer's state has a complex tensor"):
        run(leaf(0.1), AGAIN, opt)
    (got,) = torch.autograd.grad(run(lr := leaf(0.1), opt=opt).params.sum(), lr)  # autograd knows complex tensors
    want = central_differences(lambda lr: run(lr, opt=opt).params.sum(), torch.tensor(0.1, dtype=F64))[0]
    torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-9)


@every_strategy
def test_state_with_leaves_that_are_no_tensors(strategy):
    opt = own_optimizer(lambda g, s, p, h: (p - h["lr"] * g, {"t": s["t"] + 1, "none": None}), {"t": 0, "none": None})
    lr = leaf(0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        end = run(lr, strategy, opt)
        end.params.sum().backward()
    assert end.state == {"t": 4, "none": None}


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
    def full(g):
        if torch._C._functorch.is_batchedtensor(g):  # not the gradient, but its products with the tangents
            raise torch.OutOfMemoryError("no memory")

    def hooked(p, x):
        q = 1 * p
        q.register_hook(full)
        return loss(q, x)

    with pytest.raises(torch.OutOfMemoryError, match="^no memory$"):
        hft.hypergradient(SGD, hooked, torch.sum, W, DATA, ("lr", "momentum"), strategy=hft.Forward())


def test_zero_order_counts_errors_where_vmap_cannot_be_used():
    opt = hft.from_torchopt(__import__("torchopt").sgd, lr=0.1, momentum=0.5)
    strategy = hft.ZeroOrder(8, 0.3, generator=torch.Generator().manual_seed(0))
    end = hft.train(opt, loss, W, DATA).params.detach()

    def errors(momentum):
        return (hft.train(opt, loss, W, DATA, hparams={"momentum": torch.as_tensor(momentum)}).params > end).sum()

    with pytest.warns(UserWarning, match="one after the other"):
        value, grads, _ = hft.hypergradient(
            opt, loss, lambda p: (p > end).sum(), W, DATA, "momentum", strategy=strategy
        )
    assert not value.is_floating_point()
    assert value == errors(0.5)
    rows = drawn(8, generator=torch.Generator().manual_seed(0))
    want = sum(e * (errors(0.5 + 0.3 * e) - errors(0.5 - 0.3 * e)) for e in rows) / (8 * 0.6)
    torch.testing.assert_close(grads["momentum"], want.to(grads["momentum"]))


# -- the process ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(
    torch.__version__ < (2, 13), reason="torch 2.10 compiles no more after modes ran in two threads at once"
)
def test_threads_have_their_own_results_and_leave_the_settings_of_the_process():
    before = torch.backends.cuda.flash_sdp_enabled()

    def value(lr, strategy):
        return run(lr, strategy).params.sum()

    want = torch.autograd.grad(value(lr := leaf(0.1), hft.Unroll(checkpoint=False)), lr)[0]

    def work(strategy):
        for _ in range(5):
            value(lr := leaf(0.1), strategy).backward()
            torch.testing.assert_close(lr.grad, want)
            torch.testing.assert_close(torch.func.grad(value)(lr.detach(), strategy), want)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, (hft.Unroll(), hft.Unroll(checkpoint=2), hft.Forward())))
    assert torch.backends.cuda.flash_sdp_enabled() is before is True
    assert torch._dynamo.eval_frame._stance.stance == "default"


@pytest.mark.parametrize("strategy", [hft.Unroll(checkpoint=kind) for kind in ("sqrt", "log")], ids=["sqrt", "log"])
def test_one_node_may_be_walked_back_by_several_threads(strategy):
    lr = leaf(0.1)
    value = run(lr, strategy, data=DATA * 4).params.sum()
    want = torch.autograd.grad(value, lr, retain_graph=True)[0]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: torch.autograd.grad(value, lr, retain_graph=True)[0], range(12)))
    assert all(torch.equal(x, want) for x in found)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo's own, at the break
def test_compiled_code_around_train_breaks_its_graph_there():
    def value(lr):
        return 2 * run(lr).params.sum()

    lr = leaf(0.1)
    got, want = (torch.autograd.grad(f(lr), lr)[0] for f in (torch.compile(value, backend="aot_eager"), value))
    assert torch.equal(got, want)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "strategy", [hft.Unroll(), hft.Implicit(tolerance=10.0), hft.ZeroOrder(2, 1e-3)], ids=lambda s: type(s).__name__
)
def test_a_round_that_ends_in_nan_is_taken_back_whatever_its_slopes(strategy):
    def lost(p, x):
        return (p * torch.where(x.sum() > 7, torch.nan, x)).sum()

    def outer(p, x):
        return p.isnan().to(F64).sum() if isinstance(strategy, hft.ZeroOrder) else loss(p, x)

    def rounds(not_finite):
        given = (hft.sgd(lr=0.1), hft.sgd(lr=1e-3), "lr", lost, outer, W, DATA, DATA)
        options = {"inner_steps": 1, "outer_steps": 6, "strategy": strategy}
        return list(hft.bilevel(*given, **options, not_finite=not_finite))

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
    grads = []
    for data in (f([x.clone().requires_grad_() for x in DATA]) for f in (make, list)):
        grads.append(torch.autograd.grad(run(torch.tensor(0.1, dtype=F64), data=data).params.sum(), list(data)))
    assert all(map(torch.equal, *grads))


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


def test_where_no_derivative_can_be_meant_a_leaf_beside_the_arguments_is_a_number():
    beside = leaf(0.3)

    def uses(p, x):
        return loss(p, x) + beside * p.sum()

    lr = torch.tensor(0.1, dtype=F64)
    with pytest.raises(ValueError, match="no argument of train"):
        run(lr, AGAIN, train_loss=uses)
    with torch.no_grad():
        got = run(lr, train_loss=uses).params
    assert torch.equal(got, run(lr, train_loss=lambda p, x: loss(p, x) + 0.3 * p.sum()).params)


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
    import torch._dynamo  # before it nothing is compiled, and there is no stance

    def refused(stance):
        raise RuntimeError("not here")

    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "set_stance", refused)
        with pytest.raises(RuntimeError, match="not here"):
            run(leaf(0.1))
    assert torch.backends.cuda.flash_sdp_enabled()

    def by_formula(p, x):
        assert not torch.backends.cuda.flash_sdp_enabled()
        return loss(p, x)

    run(leaf(0.1), train_loss=by_formula).params.sum().backward()
    outer = {"outer_loss": lambda p: by_formula(p, X), "params": W, "batches": DATA, "over": "lr"}
    torch.func.grad(lambda lr: hft.hypergradient(SGD, loss, hparams={"lr": lr}, **outer)[0])(
        torch.tensor(0.1, dtype=F64)
    )
    assert torch.backends.cuda.flash_sdp_enabled()


def test_a_part_of_the_hparams_is_given_and_the_rest_is_the_optimizers_own():
    def decayed(p: Tensor, x: Tensor, h: dict[str, Tensor]) -> Tensor:
        return loss(p, x) + h["l2"] * p.square().sum()

    lr, own = {"lr": torch.tensor(0.2, dtype=F64)}, {"loss": {"l2": torch.tensor(0.5, dtype=F64)}}
    for some, f in ((lr, loss), (own, decayed), (lr | own, decayed)):
        both = (some, {**SGD.hparams, **some})
        assert torch.equal(*(hft.train(SGD, f, W, DATA, hparams=h).params for h in both))
        found, expected = (hft.hypergradient(SGD, f, lambda p: loss(p, X), W, DATA, hparams=h)[1] for h in both)
        assert found.keys() == expected.keys()
        assert torch.equal(found["lr"], expected["lr"])
    assert torch.equal(*(SGD.update(W + 1, SGD.init(W), W, h)[0] for h in (lr, {**SGD.hparams, **lr})))


def test_losses_that_are_not_finite_are_told_once_at_the_end():
    with pytest.warns(UserWarning, match=r"the training loss of step 1 of 3 is inf, .*smaller learning rate") as told:
        hft.train(hft.sgd(lr=1e200), loss, W, DATA[:3])
    assert [x.filename for x in told] == [__file__]


@pytest.mark.parametrize(
    ("lr", "over", "what"),
    [(1e200, "lr", "outer loss"), (0.1, "loss.x", "hypergradient of 'loss.x'")],
    ids=["the end", "a root at 0"],
)
def test_what_is_not_finite_is_told(lr, over, what):
    def rooted(w, x, h):
        return w.square().sum() + h["x"].sqrt() * w.sum()

    own = {"loss": {"x": torch.tensor(0.0, dtype=F64)}}
    with pytest.warns(UserWarning, match=f"^the {what} is not finite, so training") as told:
        hft.hypergradient(hft.sgd(lr=lr), rooted, lambda w: w.square().sum(), W, [0] * 3, over, hparams=own)
    assert told[0].filename == __file__


def test_a_warning_names_the_line_that_calls():
    def call():
        return hft.hypergradient(SGD, loss, lambda p: torch.tensor(1.0), W, DATA, "lr")

    with pytest.warns(UserWarning, match="is exactly 0") as seen:
        _, grads, end = call()
    assert [(w.filename, w.lineno) for w in seen] == [(__file__, call.__code__.co_firstlineno + 1)]
    assert grads["lr"] == 0
    assert not any(x.requires_grad for x in tree.leaves(end))


# -- from one training to the next -----------------------------------------------------------------------------------


@every_unroll
def test_rounds_with_detached_in_between_are_those_of_a_loop(strategy):
    lr, params, state, got, want = leaf(0.1), W, None, [], []
    for _ in range(3):
        found = run(lr, strategy, params=params, state=state)
        got += torch.autograd.grad(loss(found.params, X), lr)
        params, state, losses = found = found.detached()
        assert not any(x.requires_grad for x in tree.leaves(found))
        assert losses.shape == (4,)
    w, m = W, torch.zeros_like(W)
    for _ in range(3):
        w, m = w.detach().requires_grad_(), m.detach()
        for x in DATA:
            (g,) = torch.autograd.grad(loss(w, x), w, create_graph=True)
            m = 0.9 * m + g + 0.1 * w
            w = w - lr * m
        want += torch.autograd.grad(loss(w, X), lr)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)
    torch.testing.assert_close(params, w.detach(), rtol=1e-13, atol=0)


@pytest.mark.parametrize("left", ["params", "state"])
@pytest.mark.parametrize("opt", [SGD, hft.adam(lr=0.1), hft.sgd(lr=0.1)], ids=["momentum", "adam", "sgd"])
@every_unroll
def test_a_forgotten_detach_is_named(strategy, opt, left):
    """In a net of several layers too, whose weights are one vector meanwhile."""

    def layered(p, x):
        return sum(loss(w, x) for w in p.values())

    net, lr = {n: W + i for i, n in enumerate("abcd")}, leaf(0.1)
    first = run(lr, strategy, opt, layered, net)
    layered(first.params, X).backward()
    given = {"params": first.params, "state": first.detached().state}
    if left == "state":
        if opt is not SGD:  # plain SGD has none, and a mean may be of no use any more
            return
        given = {"params": first.detached().params, "state": first.state}
    again = run(lr, strategy, opt, layered, **given)
    with pytest.raises(RuntimeError, match=r"goes on into what made the params .* training at run.detached\(\)"):
        layered(again.params, X).backward()


def test_params_that_the_caller_computed_once_for_two_trainings_are_named():
    made = W * leaf(2.0).exp()
    loss(run(leaf(0.1), params=made).params, X).backward()
    with pytest.raises(RuntimeError, match=r"what made the params .*, or a computation of yours\), through which one"):
        loss(run(leaf(0.1), params=made).params, X).backward()


def test_a_graph_that_is_kept_or_not_gone_through_has_no_hint():
    lr = leaf(0.1)
    first = run(lr)
    loss(first.params, X).backward(retain_graph=True)
    loss(run(lr, params=first.params).params, X).backward()
    moved = first.params.detach().requires_grad_()
    torch.autograd.grad(loss(run(lr, params=first.params).params, X), first.params)  # ends there
    (moved * 2).sum().backward()
    views = (moved * 2).view(1, 3).view(3)
    loss(run(lr, params=views).params, X).backward()


SLOW = "ignore:Implicit"  # has not converged


@pytest.mark.filterwarnings(SLOW)
@pytest.mark.parametrize(
    "strategy", [hft.Unroll(truncate=1), hft.Unroll(truncate=2, checkpoint=1), hft.Implicit("identity")], ids=str
)
def test_params_that_would_get_no_derivative_are_told(strategy):
    """What looks like first-order MAML; and nothing where params merely belong to a module, or nothing is asked."""
    own, lr = W.clone().requires_grad_(), leaf(0.1)
    module = torch.nn.Parameter(W.clone())
    told = r"params require grad, and this .* no derivative .*hft.Unroll\(\), with first_order=True"
    for params, given in ((own, SGD.hparams["lr"]), (own, lr), (module, SGD.hparams["lr"])):
        with pytest.warns(UserWarning, match=told) as seen:
            run(given, strategy, params=params)
        assert seen[0].filename == __file__
    if strategy.stepwise:
        with pytest.warns(UserWarning, match=told):
            hft.steps(SGD, loss, own, DATA, strategy=strategy)
    run(lr, strategy, params=module)
    run(lr, strategy, params=own, own=own, train_loss=lambda p, x, center: loss(p, x) + loss(p, center))
    run(lr, strategy)
    with torch.no_grad():
        run(lr, strategy, params=own)
    run(lr, params=own)


# -- a bar -----------------------------------------------------------------------------------------------------------


def test_a_bar_shows_the_steps_and_changes_nothing(capsys, monkeypatch):
    lr = leaf(0.1)
    want = run(lr)
    for data in (DATA, torch.stack(DATA)):
        found = hft.train(SGD, loss, W, data, hparams={"lr": lr}, progress=True)
        assert "4/4" in capsys.readouterr().err
        torch.testing.assert_close(found.detached(), want.detached(), rtol=1e-13, atol=1e-15)
        slopes = [torch.autograd.grad(loss(x.params, X), lr, retain_graph=True)[0] for x in (found, want)]
        torch.testing.assert_close(*slopes, rtol=1e-12, atol=0)
    assert capsys.readouterr().err == ""
    with pytest.raises(TypeError, match="progress must be True or False, got 'yes'"):
        hft.train(SGD, loss, W, DATA, progress="yes")
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ImportError, match="progress=True shows a bar by tqdm.*pip install 'hyperopt-ftp.progress.'"):
        hft.train(SGD, lambda p, x: None, W, DATA, progress=True)
