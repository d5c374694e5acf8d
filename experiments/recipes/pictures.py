"""Reading and cutting pictures, one at a time, in the processes of a DataLoader."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from experiments.common.errors import InputError
from experiments.recipes.examples import Examples
from experiments.recipes.paper import Recipe
from experiments.recipes.reading import check_inside, read_picture


class Pictures(Dataset[tuple[Tensor, int]]):
    """uint8 pictures and classes. How a picture is augmented depends on `seed` and its number alone, hence neither on
    the number of processes nor on where a run was interrupted."""

    def __init__(self, examples: Examples, recipe: Recipe, seed: int | None) -> None:
        self.examples, self.recipe, self.seed = examples, recipe, seed  # seed None: no augmentation

    def __len__(self) -> int:
        return len(self.examples.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from torchvision.transforms import v2  # slow to import

        file, size = self.examples.root / self.examples.files[index], self.recipe.image_size
        check_inside([file], self.examples.root)
        way = v2.InterpolationMode(self.recipe.interpolation)
        steps = [v2.Resize(self.recipe.resize, way), v2.CenterCrop(size)]
        if self.seed is not None:
            steps = [v2.RandomResizedCrop(size, interpolation=way), v2.RandomHorizontalFlip()]
        with torch.random.fork_rng(devices=[]):
            if self.seed is not None:
                torch.manual_seed(self.seed * 1_000_003 + index)
            return v2.Compose([*steps, v2.PILToTensor()])(read_picture(file)), self.examples.targets[index]


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
