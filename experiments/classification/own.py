"""A user's pictures, DIR/DOMAIN/CLASS/*.jpg: read when they are drawn, since a data set may be larger than memory."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from experiments.classification.data import Pictures
from experiments.classification.model import Classifier
from experiments.classification.task import ClassificationTask, Config
from experiments.common.errors import InputError
from experiments.common.named import named_network
from experiments.common.options import digest
from experiments.common.progress import Progress
from experiments.common.reading import opened, upright
from experiments.common.task import Network

SIZE = 224


@dataclass(frozen=True)
class Folder:
    """Its pictures by number, which stands for the pixels in `Pictures`."""

    root: Path
    size: int
    files: tuple[str, ...]
    present: Mapping[str, Tensor]  # the classes of each domain

    def read(self, numbers: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """uint8 [..., 3, size, size]: the middle of each; with a generator a random part, every second one mirrored."""
        flat = numbers.flatten().tolist()
        draws = [None] * len(flat) if generator is None else torch.rand(len(flat), 5, generator=generator).tolist()
        with ThreadPoolExecutor() as pool:
            cut = list(pool.map(self._cut, flat, draws))
        return torch.from_numpy(np.stack(cut)).permute(0, 3, 1, 2).reshape(*numbers.shape, 3, self.size, self.size)

    def _cut(self, number: int, draw: Sequence[float] | None) -> np.ndarray:
        image = upright(opened(self.root / self.files[number], self.root))
        part = image.resize((self.size, self.size), Image.Resampling.BILINEAR, box_of(*image.size, draw))
        return np.asarray(part)[:, ::-1] if draw is not None and draw[4] < 0.5 else np.asarray(part)


def box_of(width: int, height: int, draw: Sequence[float] | None) -> tuple[float, float, float, float]:
    """A square in the middle, 7/8 of the shorter side; or 8 to 100 % of the area with sides of 3 : 4 to 4 : 3."""
    w = h = 7 / 8 * min(width, height)
    x = y = 0.5
    if draw is not None:
        area, ratio, x, y, _ = draw
        area, ratio = (0.08 + 0.92 * area) * width * height, (4 / 3) ** (2 * ratio - 1)
        w, h = min(width, math.sqrt(area * ratio)), min(height, math.sqrt(area / ratio))
    left, top = x * (width - w), y * (height - h)
    return left, top, min(left + w, width), min(top + h, height)


def own_pictures(config: Config, progress: Progress) -> tuple[Pictures, Folder]:
    """All pictures, each opened once to see that it is one."""
    from torchvision.datasets import ImageFolder  # slow to import

    root = Path(config.data or "")
    names = sorted(path.name for path in root.iterdir() if path.is_dir())
    layout = f"--data {root}: give DIR/DOMAIN/CLASS/*.jpg, the same classes in each domain, at least two of both"
    if config.domain is not None and config.domain not in names:
        raise InputError(f"--domain {config.domain}: the domains are {', '.join(names)}")
    try:
        found = {name: ImageFolder(str(root / name)) for name in names}
    except FileNotFoundError as error:
        raise InputError(f"{layout}; {error}") from error
    classes = sorted({title for folder in found.values() for title in folder.classes})
    if len(names) < 2 or len(classes) < 2:
        raise InputError(f"{layout}; the domains are {', '.join(names) or 'none'}")
    for name, folder in found.items():
        lacking = sorted({*classes} - {*folder.classes})
        if lacking and (config.paper != "imagenet" or name == (config.domain or names[0])):
            raise InputError(f"{layout}; the domain {name} lacks the class {lacking[0]}")
    files = tuple(str(Path(file).relative_to(root)) for folder in found.values() for file, _ in folder.samples)
    with progress.task("Pictures", len(files)) as bar:
        for file in files:
            opened(root / file, root, whole=False)
            bar.advance()
    places = [Path(file).parts for file in files]
    items = tuple("/".join(parts[1:]).rpartition(".")[0] for parts in places)
    pictures = Pictures(
        images=torch.arange(len(files)),
        labels=torch.tensor([classes.index(title) for _, title, *_ in places]),
        domains=torch.tensor([names.index(name) for name, *_ in places]),
        items=items,
        groups=items,
        classes=tuple(classes),
        domain_names=tuple(names),
    )
    present = {name: torch.tensor([classes.index(title) for title in found[name].classes]) for name in names}
    return pictures, Folder(root, config.size or SIZE, files, present)


class OwnTask(ClassificationTask):
    """Pictures of a folder; the network is the study's own or one known by name, with the weights of a file."""

    def __init__(self, parts: dict[str, Pictures], folder: Folder, config: Config) -> None:
        super().__init__(parts, device=torch.device(config.device))
        self.folder, self.first = folder, None
        self.facts = {"network": config.network or "EfficientNet-Lite0", "size": folder.size, "weights": "of ImageNet"}
        if config.network is not None:
            file = None if config.checkpoint is None else Path(config.checkpoint)
            classes = len(parts["test"].classes)
            self.first = named_network(config.network, classes, folder.size, file, config.projection)
            about = f"{file.name}, {hashlib.sha256(file.read_bytes()).hexdigest()[:16]}" if file else "random"
            self.facts |= {"weights": about}

    def _draw(self, pictures: Pictures, chosen: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return self.folder.read(pictures.images[chosen], generator), pictures.labels[chosen]

    def pixels(self, images: Tensor) -> Tensor:
        return self.folder.read(images)

    def fingerprint(self) -> str:
        return f"{super().fingerprint()}-{digest({**self.facts})}"

    def pretrain_fingerprint(self) -> str:
        return digest({"pictures": self.pictures["pretrain"].fingerprint(), **self.facts})

    def new_model(self) -> Network:
        if self.first is None:
            return Classifier(len(self.pictures["test"].classes), self.folder.size, self.dropout).to(self.device)
        return deepcopy(self.first).to(self.device)

    def among(self, some: Pictures) -> Tensor:
        """Of ImageNet's tests two have 200 classes of 1,000: the largest logit among these counts."""
        return self.folder.present[some.domain_names[int(some.domains[0])]]
