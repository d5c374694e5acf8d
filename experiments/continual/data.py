"""Definitions of WordNet 3.0 by the field of the word: 24 fields of nouns, 14 of verbs, adjectives and adverbs."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from experiments.common.errors import folder_of
from experiments.common.examples import generator
from experiments.common.progress import Progress

FIELDS = {"noun": {*range(4, 29)} - {16}, "verb": range(29, 43), "adj": (0,), "adv": (2,)}  # 16, motives, has 42
POOL, FROZEN, LENGTH = 120, 4, 16  # texts of each field; layers of MiniLM that stay; tokens of a text


@dataclass(frozen=True)
class Data:
    """As many texts of each class, as the frozen layers leave them; and the layers behind these."""

    hidden: Tensor  # [class, text, token, width]
    tokens: Tensor  # [class, text, token]; 0: none
    layers: nn.ModuleList

    def fingerprint(self) -> str:
        return hashlib.sha256(self.tokens.numpy().tobytes()).hexdigest()[:16]


def definitions() -> dict[str, list[str]]:
    """By field, without examples of use; each text once."""
    folder, fields = folder_of("wn", "language") / "data" / "wordnet-3.0", {}
    for part, numbers in FIELDS.items():
        for line in (folder / f"data.{part}").read_text().splitlines():
            if line[0] != " " and int(line[9:11]) in numbers:  # not the licence
                fields.setdefault(re.split('; "|; *$', line.partition(" | ")[2])[0].strip(), f"{part} {line[9:11]}")
    return {field: [text for text, own in fields.items() if own == field] for field in dict.fromkeys(fields.values())}


@torch.no_grad()
def load(config: object, cache: Path, progress: Progress) -> Data:
    from experiments.language.model import minilm, tokenizer

    drawn, found = generator("pool"), definitions()
    texts = [own[i] for own in found.values() for i in torch.randperm(len(own), generator=drawn)[:POOL].tolist()]
    made = tokenizer()(texts, truncation=True, max_length=LENGTH, padding="max_length", return_tensors="pt")
    encoder, tokens = minilm(dropout=0.0).eval(), made["input_ids"]
    layers, encoder.encoder.layer = encoder.encoder.layer[FROZEN:], encoder.encoder.layer[:FROZEN]
    hidden = [encoder(input_ids=some, attention_mask=(some != 0).long()).last_hidden_state for some in tokens.split(64)]
    return Data(torch.cat(hidden).unflatten(0, (-1, POOL)), tokens.unflatten(0, (-1, POOL)), layers)
