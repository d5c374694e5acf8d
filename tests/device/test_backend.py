"""The simulated device itself: it computes what the CPU computes, and refuses what a GPU refuses."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad, jacfwd, jacrev, jvp, vmap

from tests.device.backend import waits

F64 = torch.float64


def drawn(device: str, *sizes: int, grad: bool = False) -> Tensor:
    """The same numbers on each device."""
    return torch.randn(*sizes, dtype=F64).to(device).requires_grad_(grad)


def gradients(d: str) -> Any:
    x, w = drawn(d, 4, 5, grad=True), drawn(d, 5, 3, grad=True)
    return torch.autograd.grad(F.cross_entropy(torch.tanh(x @ w), torch.tensor([0, 1, 2, 0]).to(d)), [x, w])


def second_derivatives(d: str) -> Any:
    x, w = drawn(d, 4, 5, grad=True), drawn(d, 5, 3, grad=True)
    first = torch.autograd.grad((x @ w).tanh().square().sum(0).softmax(0).log().sum(), [x, w], create_graph=True)
    return torch.autograd.grad(sum(g.sin().sum() for g in first), [x, w])


def views(d: str) -> Any:
    x = drawn(d, 5, 4, grad=True)
    parts = [x.t()[1:].reshape(-1)[::2], x.flatten()[:8].flip(0), x.unfold(0, 2, 1), x.diagonal(), x[1].expand(3, 4)]
    return torch.autograd.grad(sum((part.square() + part).sum() for part in parts), x)


def writes(d: str) -> Any:
    x = drawn(d, 5, 4)
    y = x.clone()
    y[1:3].mul_(2)
    y.t()[0].add_(1)
    y.view(-1)[3] = 7.0
    y[y > 0] = 0.5
    out = torch.empty(0, dtype=F64, device=d)
    torch.mm(y, y.t(), out=out)
    return y, out, y.unsqueeze_(0).squeeze_(0).t_()


def trained(d: str, kind: Callable[..., torch.optim.Optimizer], **options: Any) -> Any:
    net, x = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).double().to(d), drawn(d, 6, 5)
    optimizer = kind(net.parameters(), **options)
    for _ in range(3):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    return [p.detach() for p in net.parameters()]


def transformer(d: str) -> Any:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).double().to(d)
    return torch.autograd.grad(layer(drawn(d, 2, 5, 8)).square().mean(), [*layer.parameters()])


def random_numbers(d: str) -> Any:
    return (
        torch.randn(4, device=d), torch.rand(3, device=d), torch.bernoulli(torch.full((9,), 0.5, device=d)),
        torch.randperm(7, device=d), torch.randint(9, (4,), device=d), F.dropout(torch.ones(20, device=d), 0.5),
    )  # fmt: skip


def several_results(d: str) -> Any:
    x = drawn(d, 4, 3)
    indices = torch.tensor([[0, 1, 2]]).to(d)
    return (
        *x.topk(2), *x.sort(0), *x.split(2), x.cumsum(0), x.gather(0, indices), x.scatter_add(0, indices, x),
        torch.linalg.qr(x)[1].abs(), *torch._foreach_norm([x, x[0]]), x[torch.tensor([0, 2])],
    )  # fmt: skip


def kept(d: str) -> Any:
    net, file = nn.Linear(3, 2).double().to(d), io.BytesIO()
    torch.save({"net": net.state_dict(), "view": drawn(d, 4, 3).t()[1:]}, file)
    file.seek(0)
    found = torch.load(file, weights_only=True)
    file.seek(0)
    assert torch.load(file, map_location="cpu", weights_only=True)["view"].device.type == "cpu"
    return found["view"], found["net"]["weight"], copy.deepcopy(net).weight.detach()


SAME = {
    "gradients": gradients,
    "second derivatives": second_derivatives,
    "views": views,
    "writes": writes,
    "AdamW": lambda d: trained(d, torch.optim.AdamW),
    "AdamW, foreach": lambda d: trained(d, torch.optim.AdamW, foreach=True),
    "AdamW, fused": lambda d: trained(d, torch.optim.AdamW, fused=True),
    "SGD": lambda d: trained(d, torch.optim.SGD, lr=0.1, momentum=0.9),
    "transformer": transformer,
    "attention": lambda d: F.scaled_dot_product_attention(*(drawn(d, 2, 2, 4, 3) for _ in range(3)), is_causal=True),
    "vmap": lambda d: vmap(grad(lambda w, x: (w @ x).tanh().square().sum()), (None, 0))(drawn(d, 3, 4), drawn(d, 6, 4)),
    "jvp": lambda d: jvp(lambda x: (x @ x.t()).softmax(0).sum(0), (drawn(d, 3, 4),), (drawn(d, 3, 4),)),
    "jacfwd": lambda d: jacfwd(jacrev(lambda x: (x.sin() @ x).square()))(drawn(d, 4)),
    "random numbers": random_numbers,
    "several results": several_results,
    "kept": kept,
}


@pytest.mark.parametrize("name", SAME)
def test_the_device_computes_what_the_cpu_does(name: str):
    found = {}
    for device in ("cpu", "sim"):
        torch.manual_seed(0)
        values = SAME[name](device)
        found[device] = [values] if isinstance(values, Tensor) else [*torch.utils._pytree.tree_leaves(values)]
    assert all(x.device.type == "sim" for x in found["sim"])
    for x, y in zip(found["cpu"], found["sim"], strict=True):
        torch.testing.assert_close(y.cpu(), x, rtol=1e-12, atol=1e-12)


X, HOST, NUMBER = torch.ones(3, device="sim"), torch.ones(3), torch.tensor(2.0)


@pytest.mark.parametrize(
    "mixed",
    [
        lambda: X + HOST,
        lambda: X @ HOST,
        lambda: torch.cat([X, HOST]),
        lambda: torch.stack([X[0], NUMBER]),
        lambda: NUMBER.clone().mul_(X[0]),
        lambda: torch._foreach_add([X], [HOST]),
        lambda: torch.lerp(X, HOST, 0.5),
        lambda: F.embedding(torch.tensor([0]), torch.ones(2, 3, device="sim")),
        lambda: setattr(X.clone(), "grad", HOST),
    ],
    ids=["+", "@", "cat", "stack", "written", "foreach", "lerp", "embedding", "grad"],
)
def test_two_devices_do_not_mix(mixed: Callable[[], Any]):
    with pytest.raises((RuntimeError, TypeError), match=r"device"):
        mixed()


TAKEN = {
    "*": (lambda: X * NUMBER, {}),
    "* from the left": (lambda: NUMBER * X, {}),
    "foreach": (lambda: torch._foreach_mul([X, X], NUMBER), {}),
    "where": (lambda: torch.where(X > 0, X, NUMBER), {}),
    "index": (lambda: X[torch.tensor([0])], {"from the host at elsewhere": 1}),
}


@pytest.mark.parametrize("name", TAKEN)
def test_a_number_of_the_cpu_is_taken(name: str):
    act, copied = TAKEN[name]
    with waits() as found:
        act()
    assert found == copied


def test_what_makes_the_host_wait_is_counted():
    with waits() as found:
        X.sum().item()
        X.cpu()
        HOST.to("sim")
        X.nonzero()
        bool((X > 0).all())
    assert found == {
        "item at elsewhere": 2, "to the host at elsewhere": 1, "from the host at elsewhere": 1,
        "aten::nonzero at elsewhere": 1,
    }  # fmt: skip
    with waits() as found:
        (X * 2).sum() + X[0]
        torch.zeros(3, device="sim").fill_(2)
        X.clone().add_(NUMBER)
    assert not found


def test_a_copy_to_pinned_memory_is_late():
    """The host has to wait before it reads, and the device need not."""
    with waits() as found:
        host = (X + 1).to("cpu", non_blocking=True)
        back = host.to("sim", non_blocking=True)
    assert host.is_pinned()
    assert not HOST.is_pinned()
    assert not found
    assert torch.equal(back.cpu(), HOST + 1)
    host = (X + 2).to("cpu", non_blocking=True)
    assert host.isnan().all()
    torch.accelerator.synchronize()
    assert torch.equal(host, HOST + 2)


def test_a_large_copy_from_memory_that_is_not_pinned_waits():
    large = torch.ones(2**14 + 1)  # more than 64 KiB
    with waits() as found:
        large.to("sim", non_blocking=True)
        HOST.to("sim", non_blocking=True)
        large.pin_memory().to("sim", non_blocking=True)
    assert found == {"from the host at elsewhere": 1}


def test_memory_that_nobody_wrote_is_not_a_number():
    assert torch.empty(4, device="sim").isnan().all()


def test_its_generator_is_not_that_of_the_cpu():
    before = torch.get_rng_state()
    torch.randn(3, device="sim")
    assert torch.equal(torch.get_rng_state(), before)


def test_autocast():
    with torch.autocast("sim", torch.bfloat16):
        assert F.linear(torch.ones(3, 4, device="sim"), torch.ones(2, 4, device="sim")).dtype == torch.bfloat16
