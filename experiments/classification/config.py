"""Everything that decides the result of one run."""

from dataclasses import dataclass

from experiments.common.errors import InputError
from experiments.common.options import Options


@dataclass(frozen=True)
class Config(Options):
    """The defaults are the demo."""

    data_root: str | None = None
    id_domain: str | None = None  # None: the first domain
    limit: int | None = None
    dropout: float = 0.2
    shift: int = 6  # pixels, augmentation

    def check(self) -> None:
        super().check()
        if self.id_domain is not None and self.data_root is None:
            raise InputError("--id-domain goes with --data-root; the emoji are always fine-tuned on Twemoji")
