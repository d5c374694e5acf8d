"""Which sentiment has a text? Trained on one topic, tested on all."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertModel

from experiments.common.options import digest
from experiments.common.task import Part, percent_right
from experiments.language.data import Texts
from experiments.language.model import Sentiment, answers


class LanguageTask:
    """A `Task` over tokens in memory."""

    name = "language"
    metric = "accuracy"
    by_class = True  # it is the mean over the sentiments

    def __init__(
        self, texts: dict[str, Texts], new_encoder: Callable[[], BertModel], device: torch.device, bf16: bool = False
    ) -> None:
        self.texts, self.new_encoder, self.device, self.bf16 = texts, new_encoder, device, bf16
        self.vocabulary = torch.cat([some.tokens.flatten() for some in texts.values()]).unique()
        self.tests = {name.removeprefix("test "): some for name, some in texts.items() if name.startswith("test ")}
        own, *others = self.tests
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
        vocabulary = self.vocabulary.tolist()  # which weights an anchor has
        return digest({"texts": self.texts["pretrain"].fingerprint(), "bf16": self.bf16, "vocabulary": vocabulary})

    def new_model(self) -> Sentiment:
        return Sentiment(self.new_encoder(), self.vocabulary, self.bf16).to(self.device)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets)

    def share_right(self, outputs: Tensor, targets: Tensor) -> float:
        return (outputs.argmax(dim=1) == targets).float().mean().item()

    def validate(self, model: nn.Module) -> float:
        held_out = self.texts["validation"]
        return percent_right(answers(model, held_out, self.device), held_out.labels, self.by_class)

    def answers(self, model: nn.Module) -> dict[str, Tensor]:
        """The sentiment that each test example is given, by topic."""
        return {topic: answers(model, some, self.device) for topic, some in self.tests.items()}

    def test(self, model: nn.Module) -> dict[str, float]:
        found = self.answers(model)
        return {topic: percent_right(found[topic], some.labels, self.by_class) for topic, some in self.tests.items()}
