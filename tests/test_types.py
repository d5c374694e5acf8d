"""Types of the public surface are known to those who install the package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hyperopt_ftp

pytest.importorskip("pyright", reason="needs pyright: pip install '.[dev]'")


def test_no_public_type_is_left_to_be_inferred(tmp_path: Path):
    """But for what is compiled: there Numba and Triton give arguments their types."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path/hyperopt_ftp").symlink_to(Path(hyperopt_ftp.__file__).parent, target_is_directory=True)
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    command = [sys.executable, "-m", "pyright", "--verifytypes", "hyperopt_ftp", "--ignoreexternal", "--outputjson"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "path"), "PATH": path}
    told = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    symbols = json.loads(told.stdout)["typeCompleteness"]["symbols"]
    assert len(symbols) > 500
    unknown = [s["name"] for s in symbols if s["isExported"] and (not s["isTypeKnown"] or s["isTypeAmbiguous"])]
    assert [name for name in unknown if not name.startswith("hyperopt_ftp.kernels.")] == []
