"""Everything that decides the result of one run."""

from dataclasses import dataclass

from experiments.hypergradients.config import Plan
from experiments.language.config import Config as Language


@dataclass(frozen=True)
class Config(Plan, Language):
    """Tweets, as in the study of language. The loops are those of all other studies."""

    lr: float = 3e-4  # first learning rate; it falls to 0 as a cosine

    def check(self) -> None:
        super().check()
        self.check_plan()
