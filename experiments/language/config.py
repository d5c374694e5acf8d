"""Everything that decides the result of one run."""

from dataclasses import dataclass
from typing import Literal

from experiments.common.errors import InputError
from experiments.common.options import AnchorOptions, option


@dataclass(frozen=True)
class Config(AnchorOptions):
    """Tweets about airlines; as many of each sentiment to fine-tune on, elsewhere as many as there are."""

    linear_layers = True
    anchor_head = 10.0
    anchor_batch_size = 16

    # Trained beforehand on other tweets about all topics, head included; or MiniLM as it comes with a new head.
    anchor: Literal["topics", "minilm"] = "topics"
    batch_size: int = 16  # tweets in one step
    epochs: int = 2  # passes over the tweets about airlines
    lr: float = 2e-4  # first learning rate; it falls to 0 as a cosine
    anchor_epochs: int = 2  # passes over the tweets about all topics
    anchor_lr: float = 1e-4  # first learning rate of the anchor
    tweets: int = 500  # of each sentiment to fine-tune on, at most
    pretrain_tweets: int = 320  # of each topic and sentiment to train the anchor on, at most
    test_tweets: int = 300  # of each topic and sentiment in the tests, at most
    length: int = 40  # tokens of a tweet, at most
    # Instead of tweets opinions about films, tested on newspapers, tweets and products: the archive that has them, from
    # `pip download --no-deps --no-binary :all: vaderSentiment`.
    opinions: str | None = None
    domain: str | None = None  # fine-tune on this one; None: on the first (airlines, films)
    bf16: bool = False  # mixed precision, in training and in tests: fast where the processor has bfloat16

    def check(self) -> None:
        super().check()
        if not 2 < self.length <= 512:
            raise InputError(f"{option('length')} {self.length}: must be from 3 to 512, MiniLM's positions")
