"""Types of the public surface are known to those who install the package."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import hyperopt_ftp

pytest.importorskip("pyright", reason="needs pyright: pip install '.[dev]'")


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder where pyright finds the package as an installed one."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path/hyperopt_ftp").symlink_to(Path(hyperopt_ftp.__file__).parent, target_is_directory=True)
    return tmp_path


def pyright(folder: Path, *arguments: str) -> dict[str, Any]:
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    environment = os.environ | {"PYTHONPATH": str(folder / "path"), "PATH": path}
    command = [sys.executable, "-m", "pyright", *arguments, "--outputjson"]
    return json.loads(subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True).stdout)


def test_no_public_type_is_left_to_be_inferred(installed: Path):
    """But for what is compiled: there Numba and Triton give arguments their types."""
    symbols = pyright(installed, "--verifytypes", "hyperopt_ftp", "--ignoreexternal")["typeCompleteness"]["symbols"]
    assert len(symbols) > 500
    unknown = [s["name"] for s in symbols if s["isExported"] and (not s["isTypeKnown"] or s["isTypeAmbiguous"])]
    assert [name for name in unknown if ".kernels." not in name] == []


def test_right_uses_pass_and_wrong_ones_are_found(installed: Path):
    """Strictly, in ``typed_uses.py``, as ``make lint`` reads it, but of an installed package."""
    shutil.copy(Path(__file__).with_name("typed_uses.py"), installed)
    (installed / "pyrightconfig.json").write_text('{"extraPaths": ["path"]}')
    assert pyright(installed, "typed_uses.py")["generalDiagnostics"] == []


def test_a_use_that_is_no_longer_wrong_is_found(installed: Path):
    """The test above can fail."""
    strict = "# pyright: strict, reportUnnecessaryTypeIgnoreComment=true\n"
    (installed / "pyrightconfig.json").write_text('{"extraPaths": ["path"]}')
    (installed / "use.py").write_text(strict + "import hyperopt_ftp as hft\nhft.sgd(lr=0.1)  # pyright: ignore\n")
    assert [d["rule"] for d in pyright(installed, "use.py")["generalDiagnostics"]] == [
        "reportUnnecessaryTypeIgnoreComment"
    ]


@pytest.mark.parametrize(("file", "name"), [("types.py", "Optimizer"), ("hyper/core/inputs.py", "TrainOutputs")])
def test_what_type_checkers_read_has_the_fields_of_what_runs(file: str, name: str):
    """A NamedTuple of Python 3.10 cannot be generic, so each of these is written twice."""
    tree = ast.parse((Path(hyperopt_ftp.__file__).parent / file).read_text())
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == name]
    read, runs = ([n for n in c.body if isinstance(n, ast.AnnAssign)] for c in classes)
    assert [ast.unparse(n.target) for n in read] == [ast.unparse(n.target) for n in runs]
    assert [n.value and ast.unparse(n.value) for n in read] == [n.value and ast.unparse(n.value) for n in runs]
