"""Who competes, and the problems that they compete on."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import hyperopt_ftp as hft
from experiments.tuning.search import on_digits, on_emoji, on_tweets
from experiments.tuning.search.descents import descents, online, searched_first
from experiments.tuning.search.problem import Problem, Trial
from experiments.tuning.search.race import Clock
from experiments.tuning.search.searches import default, hyperband, random, random_all, tpe

#: What the frozen blocks of the network give of emoji, or small pictures of them.
DataSet = Literal["digits", "tweets", "emoji", "pictures"]


@dataclass(frozen=True)
class Contender:
    title: str
    run: Callable[[Problem, Clock], Iterator[Trial]]


@dataclass(frozen=True)
class Entry:
    """A problem, the data that it is made of, and who suits it."""

    title: str
    about: str
    data: DataSet
    build: Callable[[Any, int], Problem]  # of the data and a seed
    contenders: tuple[str, ...]

    def on(self, contenders: Sequence[str]) -> list[str]:
        """Those of them that take part."""
        return [name for name in contenders if name in self.contenders]

    def budget(self, seconds: float) -> float:
        """Of each contender; `seconds` where a step is short."""
        return SECONDS.get(self.data, seconds)


#: Of each contender, where a step takes longer.
SECONDS: Mapping[DataSet, float] = {"emoji": 7.0, "pictures": 28.0}

WHOLE = hft.Unroll(checkpoint=False)  # the fastest


def last_tenth(problem: Problem) -> hft.Unroll:
    return hft.Unroll(truncate=max(1, problem.steps // 10), checkpoint=False)


IMPLICIT = hft.Implicit("neumann", iterations=20, batches=10, tolerance=0.1)

CONTENDERS: Mapping[str, Contender] = {
    "default": Contender("default", default),
    "random": Contender("random search", random),
    "random-all": Contender("random search, every number", random_all),
    "tpe": Contender("TPE", tpe),
    "hyperband": Contender("Hyperband", hyperband),
    "unroll": Contender("bilevel, Unroll", lambda problem, clock: descents(problem, clock, WHOLE)),
    "truncated": Contender("bilevel, last tenth", lambda problem, clock: descents(problem, clock, last_tenth(problem))),
    "forward": Contender("bilevel, Forward", lambda problem, clock: descents(problem, clock, hft.Forward())),
    "implicit": Contender("bilevel, Implicit", lambda problem, clock: descents(problem, clock, IMPLICIT)),
    "search-unroll": Contender("search, then Unroll", lambda problem, clock: searched_first(problem, clock, WHOLE)),
    "hyper": Contender("hyper, online", lambda problem, clock: online(problem)),
    "tower": Contender("tower of 2, online", lambda problem, clock: online(problem, tower=True)),
}

SEARCHES = ("default", "random", "tpe", "hyperband")
GROUPS = {  # in each, one is chosen by its validation loss
    "search": ("random", "random-all", "tpe", "hyperband"),
    "hypergradients": ("unroll", "truncated", "forward", "implicit", "search-unroll", "hyper", "tower"),
}
FEW = (*SEARCHES, "unroll", "truncated", "forward", "hyper", "tower")
FEW_OF_LARGE = tuple(name for name in FEW if name != "forward")
MANY = (*SEARCHES, "random-all", "unroll", "truncated", "search-unroll")
MANY_OF_LARGE = (*SEARCHES, "unroll", "truncated", "search-unroll", "hyper", "tower")

_DIGITS_NETWORK = "network 64-64-10 on 1,000 digits"
_EMOJI_NETWORK = "EfficientNet-Lite0, fine-tuned on 700 Twemoji of 64 pixels with"

PROBLEMS: Mapping[str, Entry] = {
    "digits-lr": Entry(
        "digits, learning rate", f"{_DIGITS_NETWORK}, SGD with momentum 0.9", "digits", on_digits.learning_rate, FEW
    ),
    "tweets-lr": Entry(
        "tweets, learning rate", "logistic regression on 1,000 tweets of 2,000 words, SGD with momentum 0.9", "tweets",
        on_tweets.learning_rate, FEW,
    ),
    "emoji-lr": Entry(
        "emoji, learning rate", f"{_EMOJI_NETWORK} all before its last block frozen, SGD with momentum 0.9", "emoji",
        on_emoji.learning_rate, FEW_OF_LARGE,
    ),
    "digits-adam": Entry("digits, Adam's five", f"{_DIGITS_NETWORK}, AdamW", "digits", on_digits.adam, FEW),
    "tweets-adam": Entry(
        "tweets, Adam's five", "network 2,000-32-3 on 1,000 tweets, AdamW", "tweets", on_tweets.adam, FEW
    ),
    "emoji-adam": Entry(
        "emoji, Adam's five", f"{_EMOJI_NETWORK} all before its last block frozen, AdamW", "emoji", on_emoji.adam,
        FEW_OF_LARGE,
    ),
    "digits-schedule": Entry(
        "digits, schedule", f"{_DIGITS_NETWORK}, SGD with momentum 0.9 and a learning rate for each step; by default "
        "warm-up and cosine", "digits", on_digits.whole_schedule, MANY,
    ),
    "emoji-layers": Entry(
        "emoji, lr of each tensor", "EfficientNet-Lite0, all of it fine-tuned on 700 Twemoji of 32 pixels, SGD with "
        "momentum 0.9 and a learning rate for each tensor", "pictures", on_emoji.layers, MANY_OF_LARGE,
    ),
    "digits-weights": Entry(
        "digits, example weights", f"{_DIGITS_NETWORK} of which {100 * on_digits.FLIPPED:.0f} % have a wrong label, "
        "SGD with momentum 0.9 and a weight for each example", "digits", on_digits.example_weights,
        (*MANY, "implicit"),
    ),
    "tweets-l2": Entry(
        "tweets, L2 of each word", "logistic regression on 1,000 tweets of 10,000 words and pairs of words, SGD with "
        "momentum 0.9 and an L2 strength for each; chosen as a setting where penalties matter, after the one below had "
        "been tried", "tweets", on_tweets.penalties, (*MANY, "implicit"),
    ),
    "tweets-l2-more": Entry(
        "tweets, L2, more data", "the same on 2,000 tweets, in steps of 100; the first choice", "tweets",
        on_tweets.penalties_with_more_data, (*MANY, "implicit"),
    ),
}  # fmt: skip

LEFT_OUT = (
    "Forward carries a tangent for each number and is left out where they are many, and on emoji, where a tangent is "
    "as dear as the training. One-step methods see the training loss alone, in which a schedule is used once, "
    "weights gather on easy examples and L2 strengths want to be 0. Implicit differentiation has no derivative in what "
    "does not move the "
    "minimum: learning rates, betas and eps. Random search of every number is left out where all of the emoji network "
    "is trained, for time. TPE and Hyperband search the few numbers where there are many."
)
