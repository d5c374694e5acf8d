"""The drop-in classes on the device: equal to the CPU, without a wait in a step, and kept on either device."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import hyperopt_ftp as hft
from tests.device.backend import waits

from ..support.contract import SHAPES, TORCHS, Options, Row, every_input, every_row, parameters, step, through_a_file
from ..support.devices import same

#: With foreach these compute what is of all layers together on the host: so many copies a step.
READS = {"SPD": 3, "DiGraP": 9}
FLAGS: dict[str, Options] = {"default": {}, "single": {"foreach": False}, "foreach": {"foreach": True}}


def on(device: str) -> list[Any]:
    return [torch.nn.Parameter(p.detach().to(device)) for p in parameters()]


def beside(options: Options, device: str) -> Options:
    """Options with their tensors on a device."""

    def moved(x: Any) -> Any:
        if isinstance(x, tuple):
            return tuple(map(moved, x))
        return x.to(device) if isinstance(x, Tensor) else x

    return {name: moved(x) for name, x in options.items()}


def trained(row: Row, device: str, options: Options, steps: int = 3) -> tuple[list[Any], Any]:
    params = on(device)
    opt = row.build(params, **options)
    step(params, opt, range(1, steps + 1))
    return params, opt


def inputs() -> list[Any]:
    """Options on the CPU, and where there are tensors among them, on the device too."""
    found = []
    for (row, options), name in ((x.values, x.id) for x in every_input.args[1]):
        tensors = any(isinstance(x, (Tensor, tuple)) for x in options.values())
        found += [pytest.param(row, options, d, id=f"{name}-{d}") for d in (("cpu", "sim") if tensors else ("cpu",))]
    return found


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize(("row", "options", "numbers"), inputs())
def test_steps_are_those_of_the_cpu(row: Row, options: Options, numbers: str, flags: str):
    own = options | FLAGS[flags]
    want, _ = trained(row, "cpu", options | {"foreach": False})
    try:
        found, _ = trained(row, "sim", beside(own, numbers))
    except (ValueError, RuntimeError) as error:
        torchs = [torch.optim.AdamW, torch.optim.SGD]["SGD" in row.name]
        with pytest.raises(type(error)):  # as torch's own refuses it
            step(params := on("sim"), torchs(params, **{"lr": 0.05, **beside(own, numbers)}), [1])
        return
    same(found, want)


@pytest.mark.parametrize(
    ("base", "foreach"), [(n, x) for n in TORCHS for x in (False, True) if not (x and n == "Muon")]
)
def test_ftp_around_each_of_torchs_own(base: str, foreach: bool):
    """A step waits no more often than that of the base alone."""
    options = TORCHS[base] | ({} if base == "Muon" else {"foreach": foreach})  # which has none, and takes matrices
    shapes = [(4, 3), (3, 4)] if base in ("Muon", "Adafactor") else SHAPES  # torch's Adafactor divides by no entries

    def made(device: str, around: bool = True) -> tuple[list[Any], Any]:
        params = [torch.nn.Parameter(p.detach().to(device)) for p in parameters(shapes=shapes)]
        own = getattr(torch.optim, base)(params, lr=0.05, **options)
        opt = hft.FTP(own, radius_lr=0.03) if around else own
        step(params, opt, [1, 2, 3])
        return params, opt

    same(made("sim")[0], made("cpu")[0])
    counted = []
    for around in (False, True):
        _, opt = made("sim", around)
        with waits() as found:
            opt.step()
        counted.append(sum(found.values()))
    assert counted[1] == counted[0], found


@pytest.mark.parametrize("flags", FLAGS)
@every_row
def test_a_step_does_not_wait(row: Row, flags: str):
    params, opt = trained(row, "sim", FLAGS[flags])
    for p in params:
        p.grad = torch.ones_like(p)
    with waits() as found:
        opt.step()
    assert sum(found.values()) == (READS.get(row.name.split("(")[0].split(" ")[0], 0) if flags == "foreach" else 0)


@every_row
def test_a_state_goes_to_the_cpu_and_back(row: Row):
    params, opt = trained(row, "sim", {})
    kept = through_a_file(opt.state_dict())
    host = [torch.nn.Parameter(p.detach().cpu()) for p in params]
    other = row.build(host)
    other.load_state_dict(copy.deepcopy(kept))
    back = [torch.nn.Parameter(p.detach().clone()) for p in params]
    third = row.build(back)
    third.load_state_dict(through_a_file(other.state_dict()))
    for some, own in ((params, opt), (host, other), (back, third)):
        step(some, own, [4, 5])
    same(params, host)
    same(back, host)


def test_a_tensor_lr_of_the_device():
    w = torch.nn.Parameter(torch.ones(3, device="sim"))
    opt = hft.FTPAdamW([w], lr=torch.tensor(0.01, device="sim"))
    for _ in range(3):
        w.grad = torch.ones_like(w)
        opt.step()
    with waits() as found:
        opt.step()
    assert not found
