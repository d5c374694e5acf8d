"""Imports only go down. The table is the picture in docs/design.md."""

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

# What a part of the package may import of the package.
ALLOWED = {
    "types": set(),
    "tree": set(),
    "dtensors": set(),
    "calls": set(),
    "hparams": {"tree", "calls"},
    "schedules": {"types", "hparams", "calls"},
    "optimizers": {"types", "tree", "dtensors", "hparams", "calls", "schedules"},
    "anchored": {"types", "tree", "dtensors", "hparams", "calls", "optimizers"},
    "hyper": {"types", "tree", "dtensors", "hparams", "calls", "optimizers", "anchored"},
    "mixing": {"types", "tree", "hparams", "calls", "optimizers", "hyper"},
    "torchopt_bridge": {"types", "tree", "hparams", "calls", "optimizers"},
    "kernels": {"dtensors"},
    "torch_optim": {"types", "tree", "dtensors", "hparams", "calls", "optimizers", "anchored", "kernels"},
    "watch": {"types", "tree", "dtensors", "calls", "anchored", "torch_optim"},
    "describe": {"calls", "anchored", "torch_optim", "watch"},
    "plot": {"types", "tree"},
    "testing": {"types", "tree", "calls"},
    "integrations": {"types", "hparams", "calls", "torch_optim"},
}


#: What a room may import of the others in its part; files that lie beside them count as rooms.
ROOMS = {
    "hyper": {
        "core": set(),
        "unrolling": {"core"},
        "guards": {"core"},
        "strategies": {"core", "unrolling"},
        "towers": {"core"},
        "distributed": {"core", "guards"},
        "guarded": {"core", "guards", "distributed"},
        "train": {"core", "guards", "distributed", "guarded", "unrolling", "strategies"},
        "hypergradient": {"core", "guards", "distributed", "strategies", "towers", "train"},
        "loops": {"core", "guards", "distributed", "towers", "train", "hypergradient"},
        "cost": {"core", "guards", "distributed", "guarded", "unrolling", "strategies", "towers", "train",
                 "hypergradient"},
    },
    "torch_optim": {
        "checks": set(),
        "pure": {"checks"},
        "anchors": {"checks"},
        "execution": {"anchors"},
        "movers": {"checks", "execution"},
        "checkpoints": {"checks", "execution", "movers"},
        "drop_in": {"checks", "execution", "movers", "checkpoints"},
        "classes": {"anchors", "execution", "movers", "drop_in"},
    },
}  # fmt: skip


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


def imported_parts(path: Path) -> set[str]:
    """Parts of the package that a file imports, its own included."""
    return {name[1] for name in imported(path) if name[0] == "hyperopt_ftp" and len(name) > 1}


FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def test_imports_only_go_down():
    above = {}
    for path in FILES:
        part = path.relative_to(PACKAGE).with_suffix("").parts[0]
        above[str(path.relative_to(PACKAGE))] = imported_parts(path) - ALLOWED[part] - {part}
    assert {path: sorted(parts) for path, parts in above.items() if parts} == {}


@pytest.mark.parametrize("part", ROOMS)
def test_rooms_import_only_downward(part: str):
    rooms, above = ROOMS[part], {}
    for path in sorted((PACKAGE / part).rglob("*.py")):
        room = path.relative_to(PACKAGE / part).with_suffix("").parts[0]
        if room != "__init__":
            names = [name for name in imported(path) if name[:2] == ["hyperopt_ftp", part] and len(name) > 2]
            above[str(path.relative_to(PACKAGE))] = {name[2] for name in names} - rooms[room] - {room}
    assert {path: sorted(found) for path, found in above.items() if found} == {}
    order = list(rooms)
    assert all(order.index(below) < order.index(room) for room, all_below in rooms.items() for below in all_below)


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


def test_every_part_is_in_the_table():
    parts = {p.relative_to(PACKAGE).with_suffix("").parts[0] for p in FILES}
    assert parts == set(ALLOWED)


def test_the_picture_has_every_part_above_what_it_imports():
    """Each part's line in docs/design.md lies above, or in, those of the parts that it may import."""
    picture = (ROOT / "docs" / "design.md").read_text().split("```")[1].splitlines()
    line = {}
    for part in ALLOWED:
        (line[part],) = [i for i, text in enumerate(picture) if re.search(rf"(?<![\w./]){part}(/|\.py)", text)]
    assert [
        (part, below) for part, all_below in ALLOWED.items() for below in all_below if line[part] > line[below]
    ] == []


# Parts that run, compile or look at values; every other one is pure.
RUNS = {
    "hyper",
    "mixing",
    "torchopt_bridge",
    "kernels",
    "torch_optim",
    "watch",
    "plot",
    "testing",
    "integrations",
}
PURE = sorted(ALLOWED.keys() - RUNS)
PURE += [
    "hyper/towers",
    "hyper/loops/held_out",
    "hyper/loops/tpgm",
]


@pytest.mark.parametrize("folder", PURE)
def test_pure_layers_hold_no_detach_no_grad_or_item_beyond_validation(folder: str):
    place = PACKAGE / folder
    paths = list(place.rglob("*.py")) or [place.with_suffix(".py")]
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                allowed = path.name == "hparams.py" and node.attr == "item"
                assert node.attr not in {"detach", "no_grad", "item", "tolist"} or allowed, f"{path.name}: {node.attr}"


def test_no_test_file_imports_another():
    """What tests share lies in tests/support, or beside them in a file that is no test."""
    files = list((ROOT / "tests").rglob("*.py"))
    assert len(files) > 100
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                parts = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
                assert not [part for part in parts if part.startswith("test_")], f"{path.relative_to(ROOT)}: {parts}"


OPTIONAL = ["torchopt", "triton", "numba", "timm", "transformers", "lightning", "accelerate", "peft"]
OPTIONAL += ["segmentation_models_pytorch", "hyperopt_ftp.integrations"]
INTEGRATIONS = [path.stem for path in (PACKAGE / "integrations").glob("[!_]*.py")]


@pytest.mark.parametrize(
    ("names", "absent"),
    [(["hyperopt_ftp"], OPTIONAL), ([f"hyperopt_ftp.integrations.{name}" for name in INTEGRATIONS], INTEGRATIONS)],
    ids=["package", "integrations"],
)
def test_an_import_imports_no_optional_library(names: list[str], absent: list[str]):
    code = f"import sys, {', '.join(names)}; print([m for m in {absent} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
    assert len(absent) >= 2
