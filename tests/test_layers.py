"""Imports only go down in the pictures of docs/design.md."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "hyperopt_ftp"


def lines_of(part: str) -> dict[str, int]:
    """The line of each part, or of each room of a part, in that picture of docs/design.md which has this one."""
    pictures = (ROOT / "docs" / "design.md").read_text().split("```")[1::2]
    (picture,) = (text for text in pictures if re.search(rf"^ {part}(/|\.py)", text, flags=re.M))
    named = [(name, i) for i, line in enumerate(picture.splitlines()) for name in re.findall(r"(\w+)(?:/|\.py)", line)]
    assert len(dict(named)) == len(named)
    return dict(named)


def imported(path: Path) -> list[list[str]]:
    """The full names that a file imports."""
    here = path.relative_to(ROOT).with_suffix("").parts
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = list(here[: len(here) - node.level]) if node.level else []
            base += node.module.split(".") if node.module else []
            found += [[*base, alias.name] for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [alias.name.split(".") for alias in node.names]
    return found


FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


@pytest.mark.parametrize(("folder", "one"), [("", "describe"), ("hyper", "hypergradient"), ("torch_optim", "drop_in")])
def test_imports_only_go_down(folder: str, one: str):
    line, here = lines_of(one), ["hyperopt_ftp", *filter(None, [folder])]
    above, seen = [], set()
    for path in FILES:
        own = [*path.relative_to(ROOT).with_suffix("").parts]
        if own[: len(here)] != here or own[len(here)] == "__init__":
            continue
        part = own[len(here)]
        seen.add(part)
        names = [name for name in imported(path) if name[: len(here)] == here and len(name) > len(here)]
        below = {name[len(here)] for name in names} - {part}
        above += [(str(path.relative_to(PACKAGE)), other) for other in below if line[other] <= line[part]]
    assert above == []
    assert seen == line.keys() - {"experiments", "benchmarks", "examples", "tests"}


def test_no_files_import_each_other_in_a_circle():
    """Not for the checker of types alone either."""
    modules = {path.relative_to(ROOT).with_suffix("").parts: path for path in FILES}
    names = {path: imported(path) for path in FILES}
    below = {
        path: [modules[found[:n]] for name in names[path] for n in (len(name), len(name) - 1)
               if (found := tuple(name))[:n] in modules]
        for path in FILES
    }  # fmt: skip
    assert sum(map(len, below.values())) > len(FILES)
    list(TopologicalSorter(below).static_order())


def test_compiled_steps_are_known_to_two_strategies_alone():
    room = ["hyperopt_ftp", "hyper", "compiled"]
    users = {path for path in FILES if any(name[:3] == room for name in imported(path))}
    outside = {path.relative_to(PACKAGE / "hyper").as_posix() for path in users if path.parent.name != "compiled"}
    assert outside == {"strategies/unroll.py", "strategies/forward.py"}


# Parts that run, compile or look at values; every other one is pure.
RUNS = {"hyper", "mixing", "torchopt_bridge", "kernels", "torch_optim", "watch", "plot", "testing", "integrations"}
PURE = sorted({path.relative_to(PACKAGE).with_suffix("").parts[0] for path in FILES} - RUNS)
PURE += ["hyper/loops/held_out", "hyper/loops/tpgm"]


@pytest.mark.parametrize("folder", PURE)
def test_pure_layers_hold_no_detach_no_grad_or_item_beyond_validation(folder: str):
    place = PACKAGE / folder
    paths = list(place.rglob("*.py")) or [place.with_suffix(".py")]
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                allowed = path.name == "hparams.py" and node.attr == "item"
                assert node.attr not in {"detach", "no_grad", "item", "tolist"} or allowed, f"{path.name}: {node.attr}"


OPTIONAL = ["torchopt", "hypothesis", "triton", "numba", "timm", "transformers", "lightning", "accelerate", "peft"]
OPTIONAL += ["segmentation_models_pytorch", "hyperopt_ftp.integrations"]
#: What takes long to import or define, and few need.
HEAVY = ["torch._dynamo", "torch._inductor", "torch.distributed.tensor", "hyperopt_ftp.kernels.custom_op"]
INTEGRATIONS = [path.stem for path in (PACKAGE / "integrations").glob("[!_]*.py")]


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import hyperopt_ftp.testing", OPTIONAL + HEAVY),
        (f"import {', '.join(f'hyperopt_ftp.integrations.{name}' for name in INTEGRATIONS)}", INTEGRATIONS),
    ],
    ids=["package", "integrations"],
)
def test_nothing_optional_or_heavy_is_imported(code: str, absent: list[str]):
    code = f"import sys\n{code}\nprint([m for m in {absent} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
    assert len(absent) >= 2
