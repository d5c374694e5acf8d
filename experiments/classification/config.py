"""Everything that decides the result of one run."""

from dataclasses import dataclass
from typing import Literal

from experiments.common.errors import InputError
from experiments.common.options import AnchorOptions


@dataclass(frozen=True)
class Config(AnchorOptions):
    """The defaults compare at one learning rate; `make demo` has three."""

    # Trained beforehand on other items in all styles, head included; or ImageNet's weights with a new head, left free.
    anchor: Literal["styles", "imagenet"] = "styles"
    pictures: Literal["emoji", "cells"] = "emoji"  # cells: solar cells, mono- and polycrystalline, of elpv-dataset
    # Pictures of your own, root/<domain>/<class>/*.png (or jpg, webp, bmp, gif), instead of these; files of one
    # class with the same stem are one item, and all of an item is in one part of the split.
    data_root: str | None = None
    id_domain: str | None = None  # to fine-tune on, not for emoji; None: the first in the alphabet
    limit: int | None = None  # use only so many items, for a quick try

    def check(self) -> None:
        super().check()
        if self.id_domain is not None and self.data_root is None and self.pictures == "emoji":
            raise InputError(
                "--id-domain goes with --data-root or --pictures cells; the emoji are always fine-tuned on Twemoji"
            )
        if self.pictures == "cells" and self.data_root is not None:
            raise InputError("--pictures cells and --data-root: give one of them")
