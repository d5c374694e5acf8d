"""Opinions about films, in newspapers, in tweets and about products, each with the mean rating of 20 people.

They are those of Hutto and Gilbert (ICWSM 2014), and lie in the source archive of the package vaderSentiment (MIT; the
texts are their authors'), not in its wheel. Nothing of them is kept in this repository.
"""

import tarfile
from pathlib import Path

import torch

from experiments.common.errors import InputError
from experiments.common.tweets import Tweets, plain

FILES = {
    "films": "movieReviewSnippets",
    "newspapers": "nytEditorialSnippets",
    "tweets": "tweets",
    "products": "amazonReviewSnippets",
}
CLEAR, FLAT = 1.0, 0.5  # of a rating from -4 to 4: beyond CLEAR a sentiment, within FLAT none; between them left out


def opinions(archive: Path) -> Tweets:
    """All with a clear sentiment, or clearly none, the first of each text, as `plain` leaves it."""
    texts, labels, topics, seen = [], [], [], set()
    for topic, rows in _rows(archive).items():
        for row in rows.splitlines():
            _, rating, text = row.split("\t", 2)
            text, value = plain(text), float(rating)
            if text and text not in seen and (abs(value) > CLEAR or abs(value) <= FLAT):
                seen.add(text)
                texts.append(text)
                labels.append(0 if value < -CLEAR else 2 if value > CLEAR else 1)
                topics.append(topic)
    return Tweets(tuple(texts), torch.tensor(labels), tuple(topics))


def _rows(archive: Path) -> dict[str, str]:
    """The text of each file, from the archive within the archive."""
    try:
        with tarfile.open(archive) as outer:
            inside = next(name for name in outer.getnames() if name.endswith("hutto_ICWSM_2014.tar.gz"))
            with tarfile.open(fileobj=outer.extractfile(inside)) as inner:
                by_name = {name.rpartition("/")[2]: name for name in inner.getnames()}
                read = {topic: inner.extractfile(by_name[f"{stem}_GroundTruth.txt"]) for topic, stem in FILES.items()}
                return {topic: file.read().decode("latin-1") for topic, file in read.items() if file is not None}
    except (OSError, tarfile.TarError, StopIteration, KeyError) as error:
        raise InputError(
            f"{archive} is not the source archive of vaderSentiment: "
            "pip download --no-deps --no-binary :all: vaderSentiment"
        ) from error
