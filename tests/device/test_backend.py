"""The simulated device refuses what a GPU refuses, and tells where the host waits: other tests see what it computes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.device.backend import waits

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
