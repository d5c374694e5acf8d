"""Every optimizer of other packages as a base: held and resumed to the last bit, or refused with the reason."""

from __future__ import annotations

import importlib
import re

import pytest
import torch

import hyperopt_ftp as hft

from . import bases
from .bases import LIBRARIES, Library


def _names(library: Library) -> list[str]:
    """As the page has them: one that a newer release brings is tried when the page is written."""
    part = bases.DOCS.read_text().split(f"## {library.package} ")[1].split("\n## ")[0]
    return re.findall(r"`(\w+)`", part)


CASES = [
    pytest.param(library, name, id=f"{library.package}-{name}") for library in LIBRARIES for name in _names(library)
]


@pytest.mark.parametrize(("library", "name"), CASES)
def test_a_base_is_held_or_refused(library: Library, name: str):
    pytest.importorskip(library.module)
    text = bases.DOCS.read_text().split(f"## {library.package} ")[1].split("\n## ")[0]
    what = bases.outcome(library, name)
    row = re.search(rf"^\| `{name}` \| (.*) \|$", text, re.MULTILINE)
    assert what == (row.group(1) if row else "held")


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.package)
def test_no_class_of_the_tested_version_is_left_out(library: Library):
    pytest.importorskip(library.module)
    if f"## {library.package} {bases.version(library.package)}\n" in bases.DOCS.read_text():
        assert set(_names(library)) == set(bases.classes(library))


@pytest.mark.parametrize("name", ["SAM", "GSAM", "WSAM", "LookSAM", "FriendlySAM"])
def test_sam_goes_around_ours(name):
    """It evaluates the loss twice in a step, and then steps its base: with that the rows are in the ball."""
    package = pytest.importorskip("pytorch_optimizer")
    net = bases.network()
    start = [p.detach().clone() for p in net.parameters()]
    more = {}
    if name == "GSAM":
        schedule = importlib.import_module("pytorch_optimizer").ProportionScheduler
        lr = torch.optim.lr_scheduler.LambdaLR(torch.optim.SGD(net.parameters(), lr=1e-2), lambda _: 1.0)
        more = {"model": net, "rho_scheduler": schedule(lr, max_lr=1e-2, min_lr=0.0, max_value=0.1, min_value=0.05)}
    sam = getattr(package, name)(net.parameters(), base_optimizer=hft.FTPAdamW, lr=1e-2, radius_lr=0.05, **more)

    def loss() -> torch.Tensor:
        return (net(bases.X) - bases.Y).square().mean()

    def closure() -> torch.Tensor:
        value = loss()
        value.backward()
        return value

    losses = []
    for _ in range(20):
        if name == "GSAM":
            sam.set_closure(torch.nn.functional.mse_loss, bases.X, bases.Y)
            losses.append(float(sam.step()[1]))
        else:
            value = loss()
            value.backward()
            sam.step(closure)
            sam.zero_grad()
            losses.append(value.item())
    assert losses[-1] < losses[0]
    radii = list(sam.base_optimizer.radii().values())
    for p, w0, radius in zip(net.parameters(), start, radii, strict=True):
        c = (p.detach() - w0).abs()
        assert float((c.sum(1) if c.ndim > 1 else c.sum()).max()) <= radius * (1 + 1e-5)
