"""Data of the studies: what is read from packages, and features that are the network's own."""

from io import StringIO

import pytest
import torch
from rich.console import Console

from experiments.classification.data import Pictures
from experiments.classification.model import Classifier
from experiments.common import frozen
from experiments.common.digits import digits
from experiments.common.errors import InputError
from experiments.common.progress import Progress
from experiments.common.tweets import TOPICS, bag_of_words, plain, topic_of, tweets


def test_digits_are_pictures_with_labels():
    x, y = digits()
    assert x.shape == (1797, 64)
    assert 0 <= x.min() < x.max() <= 1
    assert y.bincount(minlength=10).min() > 170


def test_tweets_have_a_sentiment_and_a_topic_and_no_copy():
    read = tweets()
    assert len(read.texts) == len(set(read.texts)) == len(read.labels) == len(read.topics) > 30_000
    assert set(read.topics) == set(TOPICS)
    assert read.labels.bincount().min() > 5_000
    cars = read.about("self-driving cars")
    assert set(cars.topics) == {"self-driving cars"}
    assert cars.labels.tolist() == [
        label for label, t in zip(read.labels.tolist(), read.topics, strict=True) if t == "self-driving cars"
    ]
    assert read.fingerprint() == tweets().fingerprint() != cars.fingerprint()
    with pytest.raises(InputError, match="there are airlines"):
        read.about("trains")


def test_a_text_is_told_by_its_words_alone():
    assert plain("RT @x: Caf\u00e9 at  7pm, @Bob! https://t.co/abc") == "caf at 0pm, @user!"
    assert plain("caf at 9pm, @eve!") == plain("Caf\u00e9 at 7pm, @Bob!")
    assert topic_of("My FLIGHT in a driverless car") == "airlines"
    assert topic_of("nothing of it") is None


def test_a_bag_of_words_knows_the_words_it_was_fitted_on():
    fitted, other = bag_of_words(["good car", "bad car", "good good day"], 4, ["good", "unknown"])
    assert fitted.shape == (3, 4)
    assert other.dtype == torch.float32
    assert torch.allclose(fitted.norm(dim=1), torch.ones(3))
    assert other.norm(dim=1).tolist() == [1.0, 0.0]
    assert (other[0] > 0).sum() == 1


def test_frozen_blocks_and_tail_are_the_whole_network(tmp_path, monkeypatch):
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    drawn = Pictures(
        images, torch.tensor([0, 1, 1]), torch.tensor([0, 1, 2]), ("a",) * 3, ("a",) * 3, ("x", "y"), ("s",)
    )
    monkeypatch.setattr(frozen, "emoji_pictures", lambda cache, progress: drawn)
    whole = Classifier(2, 64, 0.0).eval()
    weight = torch.randn(2, 1280, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole.network._fc.weight.copy_(weight)
        expected = whole(images)
    for block in (11, 16):
        features = frozen.frozen_features(tmp_path, Progress(Console(file=StringIO())), block)
        tail = frozen.Tail(block, classes=2).train()
        with torch.no_grad():
            tail.head.weight.copy_(weight)
            found = tail(features.x)
        # Sums of up to 1,280 float32 numbers in another order.
        assert torch.allclose(found, expected, atol=1e-4 * expected.abs().max().item(), rtol=0)
        again = frozen.frozen_features(tmp_path, Progress(Console(file=StringIO())), block)
        assert torch.equal(again.x, features.x)
        assert again.fingerprint() == features.fingerprint()
    with pytest.raises(InputError, match="block 17: the network has the blocks 1 to 16"):
        frozen.frozen_features(tmp_path, Progress(Console(file=StringIO())), 17)
