"""Which sentiment has a text? Trained on one topic, tested on all."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertModel

from experiments.common.options import digest
from experiments.common.task import Part
from experiments.language.data import Texts
from experiments.language.model import Sentiment, accuracy


class LanguageTask:
    """A `Task` over tokens in memory."""

    name = "language"
    metric = "accuracy"

    def __init__(
        self, texts: dict[str, Texts], new_encoder: Callable[[], BertModel], device: torch.device, bf16: bool = False
    ) -> None:
        self.texts, self.new_encoder, self.device, self.bf16 = texts, new_encoder, device, bf16
        self.topics = tuple(name.removeprefix("test ") for name in texts if name.startswith("test "))
        own, *others = self.topics
        self.columns: Mapping[str, tuple[str, ...]] = {
            "id": (own,), **{topic: (topic,) for topic in others}, "ood": tuple(others)
        }  # fmt: skip
        self.titles: Mapping[str, str] = {"id": f"ID: {own}", "ood": "OOD mean", "images_per_second": "tweets/s"}
        self.parts: Mapping[str, Part] = {
            name: Part(len(some.labels), partial(self._draw, some), some.lengths)
            for name, some in texts.items()
            if not name.startswith("test ")
        }

    @staticmethod
    def _draw(texts: Texts, chosen: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return texts.draw(chosen)

    def fingerprint(self) -> str:
        return digest({name: some.fingerprint() for name, some in self.texts.items()})

    def pretrain_fingerprint(self) -> str:
        return digest({"texts": self.texts["pretrain"].fingerprint(), "bf16": self.bf16})

    def new_model(self) -> Sentiment:
        return Sentiment(self.new_encoder(), self.bf16).to(self.device)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets)

    def share_right(self, outputs: Tensor, targets: Tensor) -> float:
        return (outputs.argmax(dim=1) == targets).float().mean().item()

    def validate(self, model: nn.Module) -> float:
        return self._accuracy(model, "validation")

    def test(self, model: nn.Module) -> dict[str, float]:
        return {topic: self._accuracy(model, f"test {topic}") for topic in self.topics}

    def _accuracy(self, model: nn.Module, part: str) -> float:
        return accuracy(model, self.texts[part], self.device)
