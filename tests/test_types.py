"""Types of the public surface are known to those who install the package."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hyperopt_ftp

pytest.importorskip("pyright", reason="needs pyright: pip install '.[dev]'")


def test_no_public_type_is_left_to_be_inferred(tmp_path: Path):
    """Of an installed package, but for what is compiled: there Numba and Triton give arguments their types."""
    (tmp_path / "hyperopt_ftp").symlink_to(Path(hyperopt_ftp.__file__).parent, target_is_directory=True)
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "PATH": path}
    options = ("--verifytypes", "hyperopt_ftp", "--ignoreexternal", "--outputjson")
    command = [sys.executable, "-m", "pyright", *options]
    told = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True).stdout
    symbols = json.loads(told)["typeCompleteness"]["symbols"]
    assert len(symbols) > 500
    unknown = [s["name"] for s in symbols if s["isExported"] and (not s["isTypeKnown"] or s["isTypeAmbiguous"])]
    assert [name for name in unknown if ".kernels." not in name] == []


@pytest.mark.parametrize(("file", "name"), [("types.py", "Optimizer"), ("hyper/core/inputs.py", "TrainOutputs")])
def test_what_type_checkers_read_has_the_fields_of_what_runs(file: str, name: str):
    """A NamedTuple of Python 3.10 cannot be generic, so each of these is written twice."""
    tree = ast.parse((Path(hyperopt_ftp.__file__).parent / file).read_text())
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == name]
    read, runs = ([n for n in c.body if isinstance(n, ast.AnnAssign)] for c in classes)
    assert [ast.unparse(n.target) for n in read] == [ast.unparse(n.target) for n in runs]
    assert [n.value and ast.unparse(n.value) for n in read] == [n.value and ast.unparse(n.value) for n in runs]
