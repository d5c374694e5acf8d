"""Tweets as bags of words, in disjoint parts."""

from collections.abc import Mapping

import torch

from experiments.common.examples import Examples, split
from experiments.common.tweets import Tweets, bag_of_words


def bags(tweets: Tweets, sizes: Mapping[str, int], words: int, seed: int, known: int = 1) -> dict[str, Examples]:
    """The parts of a split. The words are those of the first parts, as many as `known`; no other part has a say."""
    parts = split(Examples(torch.arange(len(tweets.texts)), tweets.labels), sizes, seed)
    texts = [[tweets.texts[place] for place in part.x.tolist()] for part in parts.values()]
    learned, *others = bag_of_words([text for part in texts[:known] for text in part], words, *texts[known:])
    rows = [*learned.split([len(part) for part in texts[:known]]), *others]
    return {name: Examples(x, part.y) for (name, part), x in zip(parts.items(), rows, strict=True)}
