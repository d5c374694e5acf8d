"""Reading and cutting pictures, one at a time, in the processes of a DataLoader."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from experiments.common.errors import InputError
from experiments.common.pictures import open_picture, read_picture
from experiments.recipes.examples import Examples, check_in_root
from experiments.recipes.paper import Recipe

IGNORED = 255  # in masks
FLIPPED = 0.5


def read_mask(file: Path, classes: int) -> Image.Image:
    """One byte a pixel. A palette is of no account: its indices are the classes."""
    image = open_picture(file, ("PNG",))
    if image.mode not in ("L", "P"):
        raise InputError(f"the mask {file} has the mode {image.mode}; save it with one byte a pixel, the class")
    wrong = {value for value in np.unique(np.asarray(image)).tolist() if value >= classes and value != IGNORED}
    if wrong:
        raise InputError(f"the mask {file} has the class {min(wrong)}; allowed are 0 ... {classes - 1} and {IGNORED}")
    return image


class Pictures(Dataset[tuple[Tensor, Any]]):
    """uint8 pictures and targets. How a picture is augmented depends on `seed` and its number alone, hence neither on
    the number of processes nor on where a run was interrupted."""

    def __init__(self, examples: Examples, recipe: Recipe, seed: int | None) -> None:
        self.examples, self.recipe, self.seed = examples, recipe, seed  # seed None: no augmentation

    def __len__(self) -> int:
        return len(self.examples.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        root, target = self.examples.root, self.examples.targets[index]
        file = root / self.examples.files[index]
        check_in_root([file], root)
        with torch.random.fork_rng(devices=[]):
            if self.seed is not None:
                torch.manual_seed(self.seed * 1_000_003 + index)
            picture = read_picture(file)
            if isinstance(target, str):
                check_in_root([root / target], root)
                return self._squeezed(picture, self._read_mask(root / target, file, picture.size))
            return self._cut(picture), target

    def _cut(self, picture: Image.Image) -> Tensor:
        from torchvision.transforms import v2  # slow to import

        size, way = self.recipe.image_size, v2.InterpolationMode(self.recipe.interpolation)
        if self.seed is not None:
            steps = [v2.RandomResizedCrop(size, interpolation=way), v2.RandomHorizontalFlip(FLIPPED)]
        else:
            steps = [v2.Resize(self.recipe.resize, way), v2.CenterCrop(size)]
        return v2.Compose([*steps, v2.PILToTensor()])(picture)

    def _read_mask(self, mask: Path, file: Path, size: tuple[int, int]) -> Image.Image:
        read = read_mask(mask, self.recipe.classes)
        if read.size != size:
            raise InputError(f"{file} has {size} pixels and its mask {mask} {read.size}")
        return read

    def _squeezed(self, picture: Image.Image, mask: Image.Image) -> tuple[Tensor, Tensor]:
        """The whole picture in a square, and the classes [h, w] of its pixels."""
        size = (self.recipe.image_size, self.recipe.image_size)
        image = torch.from_numpy(np.array(picture.resize(size, Image.Resampling.BILINEAR)))
        image = image.permute(2, 0, 1).contiguous()
        mask = mask.resize(size, Image.Resampling.NEAREST)  # classes cannot be mixed
        flipped = self.seed is not None and bool(torch.rand(()) < FLIPPED)
        labels = torch.from_numpy(np.array(mask)).long()
        return (image.flip(-1), labels.flip(-1)) if flipped else (image, labels)


def batches(
    examples: Examples, recipe: Recipe, workers: int, seed: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """In the order of the list, or with a seed shuffled and augmented."""
    order = None if seed is None else torch.Generator().manual_seed(seed)
    pictures = Pictures(examples, recipe, seed)
    loader = DataLoader(pictures, recipe.batch_size, shuffle=seed is not None, generator=order, num_workers=workers)
    try:
        yield from loader
    except InputError as error:  # torch puts the trace of another process before the message
        raise InputError(str(error).rpartition("InputError: ")[2].strip()) from error
