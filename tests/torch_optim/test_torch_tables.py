"""Our classes on the options and the errors that torch tests its own optimizers with; a newer torch brings its own."""

from __future__ import annotations

import importlib.util
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hyperopt_ftp as hft

from ..support.compare import equal
from ..support.contract import parameters, step
from ..support.executions import FLAGS

OWN = {"AdamW": hft.FTPAdamW, "SGD": hft.FTPSGD}

#: Refused by torch, whose executions are not ours; ours take numbers in tensors everywhere, also beside plain ones.
TAKEN = (
    "lr as Tensor doesn't work with foreach & not capturable",
    "betas must be either both floats or both Tensors",
    r"betas\[0\] as a Tensor is not supported for capturable=False and foreach=True",
)


@pytest.fixture(scope="module")
def tables() -> dict[str, dict[str, list[Any]]]:
    if importlib.util.find_spec("torch.testing._internal.common_optimizers") is None:
        pytest.skip("this torch comes without the table of its optimizers")
    script, root = f"{__package__}.torch_tables", Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-m", script], cwd=root, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return pickle.loads(done.stdout)


def plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    return value.item() if isinstance(value, Tensor) else value


def run(opt: Any, params: list[Any]) -> list[Tensor]:
    step(params, opt, range(6))
    return [p.detach() for p in params]


def rounding(options: dict[str, Any]) -> float:
    """Of six steps in float64; a captured step keeps a learning rate in its float32 tensor, and each move with it."""
    if options.get("capturable") and isinstance(options.get("lr"), Tensor):
        return 6 * 4 * options["lr"].item() * torch.finfo(torch.float32).eps
    return 1e-12


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("execution", FLAGS)
def test_free_weights_go_the_way_of_torchs_own(tables, name: str, execution: str):
    """In every execution."""
    inputs = tables[name]["inputs"]
    assert len({desc for desc, _ in inputs}) >= 9
    for desc, options in inputs:
        options = {"weight_decay": 0.0, **options}
        params, others = parameters(), parameters()
        opt = OWN[name]([{"params": params, "constrained": False}], **options, **FLAGS[execution])
        numbers = {key: plain(value) for key, value in options.items() if key != "capturable"}
        found, expected = run(opt, params), run(getattr(torch.optim, name)(others, **numbers), others)
        for p, q in zip(found, expected, strict=True):
            assert not p.numel() or (p - q).abs().max() <= rounding(options), desc
        assert opt.execution == execution


@pytest.mark.parametrize("name", OWN)
def test_what_torch_refuses_is_refused_with_the_same_error(tables, name: str):
    """And what it takes elsewhere is taken here, in any execution."""
    errors = tables[name]["errors"]
    assert len(errors) >= 7
    for desc, params, options, error in errors:
        given = parameters() if params is None else params
        if desc in TAKEN:
            others = parameters()
            numbers = {key: plain(value) for key, value in options.items()}
            found, expected = run(OWN[name](given, **options), given), run(OWN[name](others, **numbers), others)
            assert all(torch.allclose(p, q, rtol=1e-12, atol=1e-12) for p, q in zip(found, expected, strict=True)), desc
            continue
        with pytest.raises((TypeError, ValueError, RuntimeError, Warning)) as caught:
            OWN[name](given, **options)
        assert type(caught.value).__name__ == error, desc


@pytest.mark.parametrize(
    ("wrap", "atol"),
    [
        (lambda base: hft.L2SP(base, strength=0.0), 0.0),
        (lambda base: hft.MARSSP(base, radius=float("inf")), 1e-14),  # the rounding of W0 + c
    ],
    ids=["L2SP", "MARSSP"],
)
def test_a_class_that_does_nothing_is_any_optimizer_with_any_options(tables, wrap, atol: float):
    """Those of a GPU are left out: capturable is refused on a CPU, by torch."""
    assert len(tables) >= 13
    for name, table in tables.items():
        made = getattr(torch.optim, name)
        for desc, options in table["inputs"]:
            if options.get("capturable"):
                continue
            sides = []
            for around in (wrap, lambda base: base):
                params = parameters(shapes=[(4, 3), (2, 2)])
                sides.append(run(around(made(params, **options)), params))
            where = f"{name}: {desc}"
            if not atol:
                assert equal(*sides), where
            for p, q in zip(*sides, strict=True):
                assert (p - q).abs().max() <= 6 * atol * q.abs().max(), where
