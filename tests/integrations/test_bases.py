"""Every optimizer of other packages as a base: held and resumed to the last bit, or refused with the reason."""

from __future__ import annotations

import os
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
    if os.environ.get("ATEN_CPU_CAPABILITY") == "default" and f"{library.package}-{name}" in bases.COMPILED:
        pytest.skip("inductor does not compile for this machine")
    text = bases.DOCS.read_text().split(f"## {library.package} ")[1].split("\n## ")[0]
    what = bases.outcome(library, name)
    row = re.search(rf"^\| `{name}` \| (.*) \|$", text, re.MULTILINE)
    assert what == (row.group(1) if row else "held")


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.package)
def test_no_class_of_the_tested_version_is_left_out(library: Library):
    pytest.importorskip(library.module)
    if f"## {library.package} {bases.version(library.package)}\n" in bases.DOCS.read_text():
        assert set(_names(library)) == set(bases.classes(library))


SAMS = {
    **dict.fromkeys(("SAM", "LookSAM", "FriendlySAM"), lambda sam, net, **own: sam(net.parameters(), **own)),
    # Decoupled, it moves the weights once more after the step of its base.
    "WSAM": lambda sam, net, **own: sam(net, net.parameters(), decouple=False, **own),
}


@pytest.mark.parametrize("name", SAMS)
def test_sam_goes_around_ours(name):
    """It evaluates the loss twice in a step, and then steps its base: with that the rows are in the ball."""
    package = pytest.importorskip("pytorch_optimizer")
    net = bases.network()
    start = [p.detach().clone() for p in net.parameters()]
    sam = SAMS[name](getattr(package, name), net, base_optimizer=hft.FTPAdamW, lr=1e-2, radius_lr=0.05)

    def closure() -> torch.Tensor:
        sam.zero_grad()
        value = (net(bases.X) - bases.Y).square().mean()
        value.backward()
        return value

    losses = []
    for _ in range(20):
        losses.append(closure().item())
        sam.step(closure)
    assert losses[-1] < losses[0]
    radii = list(sam.base_optimizer.radii().values())
    assert len(radii) == len(start)
    for p, w0, radius in zip(net.parameters(), start, radii, strict=True):
        c = (p.detach() - w0).abs()
        assert float((c.sum(1) if c.ndim > 1 else c.sum()).max()) <= radius * (1 + 1e-5)
