"""Everything that decides the result of one run."""

from dataclasses import dataclass

from experiments.common.errors import InputError
from experiments.common.options import check_fields

WAYS = 5  # classes of an episode
SMALLEST = 8  # emoji of a class, at least
QUERIES = 5  # emoji of each class to predict
PAIRS = 6  # of styles: that of the support, that of the query
BLOCK = 12  # of EfficientNet-Lite0: what goes into it are the frozen features
INPUTS = 64  # principal components of the frozen features
WIDTH = 64  # hidden units of the network that is trained
OUTER_LR = 3e-3  # of Adam in meta-training and of AdamW in pre-training; falls to 0 as a cosine


@dataclass(frozen=True)
class Config:
    """The defaults are the study."""

    seeds: tuple[int, ...] = (0, 1, 2)  # each splits the classes anew, and draws episodes and first weights
    shots: tuple[int, ...] = (1, 3)  # emoji of each class to adapt on; each number is an experiment of its own
    episodes: int = 600  # of the test, for each seed
    validation: int = 200  # episodes by which every method's settings are chosen
    meta_steps: int = 300  # steps of the outer optimizer; ordinary pre-training makes twice as many
    tasks: int = 16  # episodes in a meta-step
    inner_steps: int = 5  # of an adaptation in meta-training; of implicit MAML twice as many

    def check(self) -> None:
        check_fields(self, episodes=PAIRS, validation=PAIRS)  # one for each pair of styles
        if max(self.shots) + QUERIES > SMALLEST:
            raise InputError(
                f"--shots {' '.join(map(str, self.shots))}: the smallest classes have {SMALLEST} emoji, and {QUERIES} "
                "of each are to be predicted"
            )
