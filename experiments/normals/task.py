"""Which way does every pixel's surface look? Trained on some textures in one light, tested on others."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from experiments.common.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from experiments.common.options import digest
from experiments.common.task import Part
from experiments.normals.metrics import WITHIN, angles, cosine_loss, measured
from experiments.normals.scenes import DOMAINS, Scenes
from experiments.segmentation.model import Segmenter

ID_DOMAIN = 0  # clean
MEASURE = f"within {WITHIN[0]:g}"  # the one that methods are compared by


class NormalsTask:
    """A `Task` over drawn scenes. No scene is in two parts, and every epoch has new ones."""

    name = "normals"
    metric = f"share of pixels within {WITHIN[0]:g} degrees"

    def __init__(
        self,
        *,
        size: int,
        train_scenes: int,
        test_scenes: int,
        validation_scenes: int,
        pretrain_scenes: int,
        device: torch.device,
        seed: int = 0,
    ) -> None:
        """Counts of training are those of an epoch."""
        self.device, self.seed = device, seed
        self.counts = {"pretrain": pretrain_scenes, "finetune": train_scenes, "train": train_scenes}
        self.counts |= {"validation": validation_scenes, "test": test_scenes}
        every = tuple(range(len(DOMAINS)))
        self.scenes = {
            part: Scenes(
                every if part in ("pretrain", "test") else (ID_DOMAIN,), size, len(self.counts) * seed + number
            )
            for number, part in enumerate(self.counts)
        }
        corrupted = tuple(f"{kind} {severity}" for kind in CORRUPTIONS for severity in SEVERITIES)
        self.columns: Mapping[str, tuple[str, ...]] = {
            "id": DOMAINS[:1],
            **{name: (name,) for name in DOMAINS[1:]},
            "ood": DOMAINS[1:],
            "corrupted": corrupted,
        }
        self.titles: Mapping[str, str] = {
            "id": "ID: clean", "textures": "other textures", "lights": "other lights", "ood": "OOD mean",
            "corrupted": "corrupted mean",
        }  # fmt: skip
        self.parts: Mapping[str, Part] = {
            part: Part(self.counts[part], partial(self._draw, some))
            for part, some in self.scenes.items()
            if part != "test"
        }

    def _draw(self, some: Scenes, chosen: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Scenes are never shown twice: every batch has a seed of its own, which the generator draws."""
        return replace(some, seed=int(torch.randint(2**62, (), generator=generator))).draw(chosen)

    @cached_property
    def _validation(self) -> tuple[Tensor, Tensor]:
        return self._all("validation", ID_DOMAIN)

    @cached_property
    def _tests(self) -> dict[str, tuple[Tensor, Tensor]]:
        tests = {name: self._all("test", number) for number, name in enumerate(DOMAINS)}
        images, normals = tests[DOMAINS[ID_DOMAIN]]
        for number, kind in enumerate(CORRUPTIONS):
            seed = len(CORRUPTIONS) * self.seed + number
            for severity in SEVERITIES:
                tests[f"{kind} {severity}"] = corrupt(images, kind, severity, seed), normals
        return tests

    def _all(self, part: str, domain: int) -> tuple[Tensor, Tensor]:
        return replace(self.scenes[part], domains=(domain,)).draw(torch.arange(self.counts[part]))

    def _described(self, part: str) -> tuple[str, int, str]:
        return part, self.counts[part], self.scenes[part].fingerprint()

    def fingerprint(self) -> str:
        return digest({"scenes": [self._described(part) for part in self.scenes]})

    def pretrain_fingerprint(self) -> str:
        return digest({"scenes": self._described("pretrain")})

    def new_model(self) -> Segmenter:
        """The segmentation network with three outputs, at first a normal that looks at the camera everywhere."""
        model = Segmenter(3, self.scenes["test"].size).to(self.device)
        assert model.decoder.classifier.bias is not None
        with torch.no_grad():
            model.decoder.classifier.bias[2] = 1.0
        return model

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return cosine_loss(outputs, targets)

    def share_right(self, outputs: Tensor, targets: Tensor) -> float:
        return (angles(outputs, targets) < WITHIN[0]).float().mean().item()

    def validate(self, model: nn.Module) -> float:
        return measured(model, *self._validation, self.device)[MEASURE]

    def test(self, model: nn.Module) -> dict[str, float]:
        """The metric by test set, and the other measures by test set and measure."""
        found = {}
        for name, shown in self._tests.items():
            scores = measured(model, *shown, self.device)
            found[name] = scores.pop(MEASURE)
            found |= {f"{name}, {measure}": score for measure, score in scores.items()}
        return found

    def shown(self, name: str) -> tuple[Tensor, Tensor]:
        """Pictures and normals of one of the test sets."""
        return self._tests[name]
