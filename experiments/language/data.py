"""Tweets as tokens, in parts that share no text."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.common.errors import InputError
from experiments.common.examples import generator
from experiments.common.opinions import FILES, opinions
from experiments.common.options import VALIDATION
from experiments.common.tweets import SENTIMENTS, Tweets, tweets
from experiments.language.config import Config

ID_TOPIC = "airlines"
#: The labels of the topic Deflategate mean something else (every model is below chance on it): it is left out.
OOD_TOPICS = ("self-driving cars", "Apple", "Coachella")
TOPICS = (ID_TOPIC, *OOD_TOPICS)


def topics_of(config: Config) -> tuple[str, ...]:
    """That which is fine-tuned on, then the others."""
    topics = TOPICS if config.opinions is None else tuple(FILES)
    own = topics[0] if config.domain is None else config.domain
    if own not in topics:
        raise InputError(f"--domain {own}: the domains are {', '.join(topics)}")
    return own, *(topic for topic in topics if topic != own)


@dataclass(frozen=True)
class Texts:
    """Tokens of N tweets, padded with 0."""

    tokens: Tensor  # [N, L] int64
    labels: Tensor  # [N] int64, index into SENTIMENTS

    @property
    def lengths(self) -> Tensor:
        """Tokens [N] of each tweet."""
        return (self.tokens != 0).sum(1)

    @property
    def groups(self) -> tuple[str, ...]:
        """A name for each tweet, the same in every split."""
        return tuple(hashlib.sha256(row.numpy().tobytes()).hexdigest()[:8] for row in self.tokens)

    def draw(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Some of them, cut to the longest one."""
        tokens = self.tokens[chosen]
        return tokens[:, : int((tokens != 0).sum(1).max())], self.labels[chosen]

    def take(self, chosen: Tensor) -> "Texts":
        return Texts(self.tokens[chosen], self.labels[chosen])

    def fingerprint(self) -> str:
        """A digest of all that is in it."""
        digest = hashlib.sha256(repr(tuple(self.tokens.shape)).encode())
        for tensor in (self.tokens, self.labels):
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def balanced(labels: Tensor, topics: Sequence[str], config: Config) -> dict[str, Tensor]:
    """Indices of the tweets of each part: `pretrain`, `finetune` and `test TOPIC`; no tweet is in two of them.

    Of each topic and sentiment half of the tweets, or as many as the config says, are for the test; what is left is
    for pre-training, and then for fine-tuning.
    """
    own_topics = topics_of(config)
    parts: dict[str, list[Tensor]] = {"pretrain": [], "finetune": [], **{f"test {topic}": [] for topic in own_topics}}
    about = {topic: torch.tensor([topic == other for other in topics]) for topic in own_topics}
    for topic in own_topics:
        for label in range(len(SENTIMENTS)):
            own = (about[topic] & (labels == label)).nonzero().flatten()
            order = own[torch.randperm(len(own), generator=generator("tweets", config.split_seed, topic, label))]
            sizes = [min(config.test_tweets, len(own) // 2), config.pretrain_tweets, config.tweets]
            test, pretrain, finetune = (order[sum(sizes[:i]) : sum(sizes[: i + 1])] for i in range(3))
            if not len(pretrain) or not len(test) or (topic == own_topics[0] and not len(finetune)):
                raise InputError(
                    f"{len(own)} texts about {topic} are {SENTIMENTS[label]}: too few for --test-tweets "
                    f"{config.test_tweets}, --pretrain-tweets {config.pretrain_tweets} and --tweets {config.tweets}"
                )
            parts[f"test {topic}"].append(test)
            parts["pretrain"].append(pretrain)
            if topic == own_topics[0]:
                parts["finetune"].append(finetune)
    return {name: torch.cat(chosen) for name, chosen in parts.items()}


def source(config: Config) -> Tweets:
    """All that there are."""
    return tweets() if config.opinions is None else opinions(Path(config.opinions))


def priors(config: Config) -> dict[str, list[int]]:
    """How many texts of each class a domain has; of each class as many are trained on and tested."""
    found = source(config)
    kinds = list(zip(found.topics, found.labels.tolist(), strict=True))
    return {topic: [kinds.count((topic, label)) for label in range(len(SENTIMENTS))] for topic in topics_of(config)}


def load(config: Config, tokenizer: Any) -> dict[str, Texts]:
    """The parts, with `train` and `validation` where anything is held out."""
    found = source(config)
    chosen: Mapping[str, Tensor] = balanced(found.labels, found.topics, config)
    parts = {}
    for name, index in chosen.items():
        texts = [found.texts[i] for i in index.tolist()]
        made = tokenizer(texts, truncation=True, max_length=config.length, padding="max_length", return_tensors="pt")
        parts[name] = Texts(made["input_ids"], found.labels[index])
    count = len(parts["finetune"].labels)
    order = torch.randperm(count, generator=generator("finetune", config.split_seed))
    parts["finetune"] = parts["finetune"].take(order)
    if config.holds_out:
        held = round(VALIDATION * count)
        if not 0 < held < count:
            raise InputError(f"too few tweets to hold out a share of {VALIDATION} of {count}")
        parts["validation"] = parts["finetune"].take(torch.arange(held))
        parts["train"] = parts["finetune"].take(torch.arange(held, count))
    return parts
