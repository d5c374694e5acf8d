"""Data of the studies: what is read from packages, and features that are the network's own."""

import io
import json
import tarfile
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

from experiments.classification.cells import cell_pictures, corrupted
from experiments.classification.data import Pictures, split
from experiments.classification.drawn import DOMAINS, EACH, SHAPES, drawn_pictures
from experiments.classification.emoji import fluent_pictures
from experiments.classification.model import Classifier, answers
from experiments.classification.task import Config
from experiments.common import frozen
from experiments.common.corruptions import corrupt
from experiments.common.errors import InputError
from experiments.common.opinions import FILES, opinions
from experiments.common.progress import Progress
from experiments.common.task import percent_right
from experiments.common.tweets import TOPICS, bag_of_words, plain, topic_of, tweets


def test_tweets_have_a_sentiment_and_a_topic_and_no_copy():
    read = tweets()
    assert len(read.texts) == len(set(read.texts)) == len(read.labels) == len(read.topics) > 30_000
    assert set(read.topics) == set(TOPICS)
    assert read.labels.bincount().min() > 5_000
    assert read.fingerprint() == tweets().fingerprint()
    assert read.fingerprint() != replace(read, topics=read.topics[::-1]).fingerprint()


def archive(path: Path, rows: dict[str, str]) -> Path:
    """As vaderSentiment's source has it: an archive in an archive."""
    inner, outer = io.BytesIO(), io.BytesIO()
    for buffer, files in (
        (inner, {f"hutto/{stem}_GroundTruth.txt": rows[topic].encode() for topic, stem in FILES.items()}),
        (outer, {"vader/additional/hutto_ICWSM_2014.tar.gz": inner}),
    ):
        with tarfile.open(fileobj=buffer, mode="w:gz") as packed:
            for name, content in files.items():
                content = content if isinstance(content, bytes) else content.getvalue()
                about = tarfile.TarInfo(name)
                about.size = len(content)
                packed.addfile(about, io.BytesIO(content))
    path.write_bytes(outer.getvalue())
    return path


def test_opinions_have_a_clear_sentiment_or_none_and_no_copy(tmp_path):
    rows = dict.fromkeys(FILES, "")
    rows["films"] = "1\t2.3\tGreat!\n2\t-1.2\tPoor\n3\t0.4\tA film.\n4\t0.7\tNearly.\n5\t-0.5\tA cut.\n6\t-3\tgreat!"
    rows["tweets"] = "1\t1.0\tSo so\n2\t1.1\tGreat! @you"
    read = opinions(archive(tmp_path / "vader.tar.gz", rows))
    assert read.texts == ("great!", "poor", "a film.", "a cut.", "great! @user")
    assert read.labels.tolist() == [2, 0, 1, 1, 2]
    assert read.topics == ("films",) * 4 + ("tweets",)
    for wrong in (tmp_path / "none.tar.gz", tmp_path / "text.tar.gz"):
        (tmp_path / "text.tar.gz").write_text("no archive")
        with pytest.raises(InputError, match="pip download --no-deps --no-binary :all: vaderSentiment"):
            opinions(wrong)


def icons(path: Path, **icons: str) -> Path:
    """What npm packs: pictures by name, and names by code."""
    content = {
        "icons": {"icons": {name: {"body": body} for name, body in icons.items()}, "width": 32, "height": 32},
        "chars": {"1f600": "face", "0023-fe0f-20e3": "key", "1f601": "another"},
    }
    with tarfile.open(path, mode="w:gz") as packed:
        for name, rows in content.items():
            about = tarfile.TarInfo(f"package/{name}.json")
            about.size = len(text := json.dumps(rows).encode())
            packed.addfile(about, io.BytesIO(text))
    return path


def test_fluent_draws_the_same_emoji_those_that_it_has(tmp_path):
    half = '<path fill="#ff0000" d="M0 0h16v32H0z"/>'
    file = icons(tmp_path / "fluent.tgz", face=half, key='<path fill="#0000ff" d="M0 0h32v32H0z"/>')
    zeros = torch.zeros(4, dtype=torch.long)
    items = ("23-20E3", "1F600", "1F601", "1F602")
    twemoji = Pictures(
        torch.zeros(4, 3, 64, 64, dtype=torch.uint8), torch.arange(4), zeros, items, items, (), ("Twemoji",)
    )
    drawn = fluent_pictures(file, twemoji)
    assert drawn.items == ("23-20E3", "1F600")
    assert drawn.labels.tolist() == [0, 1]
    assert drawn.domain_names == ("Fluent",)
    assert (drawn.images[0, :, 32, 32]).tolist() == [0, 0, 255]
    assert drawn.images[1, :, 32, [10, 50]].T.tolist() == [[255, 0, 0], [255, 255, 255]]  # the rest is white
    with pytest.raises(InputError, match="npm pack @iconify-json/fluent-emoji-flat"):
        fluent_pictures(tmp_path / "none.tgz", twemoji)


def test_another_domain_leads_and_corruptions_take_turns(emoji):
    first = emoji.select(torch.arange(0, len(emoji.items), 40))
    led = first.led_by("OpenMoji")
    assert led.domain_names == ("OpenMoji", "Twemoji", "Noto outline")
    assert led.of_domain(0).fingerprint() != first.of_domain(0).fingerprint()
    assert torch.equal(led.of_domain(0).images, first.of_domain(1).images)
    assert torch.equal(led.of_domain(2).images, first.of_domain(2).images)
    with pytest.raises(InputError, match=r"--domain Apple: the domains are Twemoji, OpenMoji, Noto outline"):
        first.led_by("Apple")
    some = first.of_domain(0)
    bad = corrupted(some)
    assert torch.equal(bad.images[2::4], corrupt(some.images[2::4], "gaussian noise", 3, seed=0))
    assert not (bad.images == some.images).flatten(1).all(1).any()
    assert torch.equal(bad.labels, some.labels)


def test_parts_have_the_shares_that_are_asked_for(emoji):
    parts = split(emoji, 0, (0.1, 0.3, 0.6))
    count = len(emoji.items)
    # a class is off by at most its largest group in each part
    assert [len(part.items) / count for part in parts.values()] == pytest.approx([0.1, 0.3, 0.6], abs=0.02)
    for shares in ((0.5, 0.5, 0.0), (0.5, 0.4, 0.2)):
        with pytest.raises(InputError, match=r"--shares 0.5 .*: give three above 0 whose sum is 1"):
            Config(shares=shares).check()
    with pytest.raises(InputError, match="--fluent is a style of emoji"):
        Config(pictures="cells", fluent="x.tgz").check()


def test_cells_are_those_of_which_the_experts_were_sure(tmp_path, monkeypatch):
    folder = tmp_path / "elpv_dataset" / "data"
    (folder / "images").mkdir(parents=True)
    rows = []
    for i, (share, kind) in enumerate([("0.0", "mono"), ("1.0", "poly"), ("0.333", "mono"), ("1.0", "mono")]):
        Image.new("L", (300, 300), 60 * i).save(folder / "images" / f"cell{i}.png")
        rows.append(f"images/cell{i}.png  {share}   {kind}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    monkeypatch.setattr("experiments.common.errors.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'hyperopt_ftp\[cells\]'"):
        cell_pictures()
    found = type("Spec", (), {"submodule_search_locations": [str(folder.parent)]})
    monkeypatch.setattr("experiments.common.errors.find_spec", lambda name: found)
    read = cell_pictures()
    assert read.items == read.groups == ("cell0", "cell1", "cell3")
    assert (read.labels.tolist(), read.domains.tolist()) == ([0, 1, 1], [0, 1, 0])
    assert read.images.shape == (3, 3, 96, 96)
    assert read.images.flatten(1).float().mean(1).tolist() == [0, 60, 180]


def test_a_drawn_shape_is_one_item_in_all_domains():
    """The same shape on white, inverted and on tiles; the more of its outline's circle it fills, the larger it is."""
    pictures = drawn_pictures()
    white, inverted, tiles = (pictures.of_domain(number) for number in range(len(DOMAINS)))
    assert white.items == inverted.items == tiles.items
    assert len({*white.items}) == len(white.items) == EACH * len(SHAPES)
    assert torch.equal(inverted.images, 255 - white.images)
    shape = (white.images < 255).any(1, keepdim=True).expand_as(white.images)
    assert torch.equal(white.images[shape], tiles.images[shape])
    assert not torch.equal(white.images, tiles.images)
    size = [shape[white.labels == label, 0].float().mean().item() for label in range(len(SHAPES))]
    assert sorted(range(4), key=lambda label: size[label]) == [0, 1, 2, 3]  # more corners fill more of a circle
    assert max(size[4:6]) < size[1]  # a star of four is within a square
    assert pictures.fingerprint() == drawn_pictures().fingerprint()


def test_balanced_accuracy_is_a_mean_over_the_classes():
    """Three of four of one class and none of the other: 3 of 5, and (75 + 0) / 2."""

    class Says(torch.nn.Module):
        def forward(self, images):
            return torch.nn.functional.one_hot(images[:, 0, 0, 0].long(), 2)

    images, labels = torch.tensor([0, 0, 0, 1, 0]).view(5, 1, 1, 1), torch.tensor([0, 0, 0, 0, 1])
    cpu = torch.device("cpu")
    found = answers(Says(), images, cpu)
    assert percent_right(found, labels) == 60
    assert percent_right(found, labels, by_class=True) == 37.5


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
            found = tail(features.images)
        # Sums of up to 1,280 float32 numbers in another order.
        assert torch.allclose(found, expected, atol=1e-4 * expected.abs().max().item(), rtol=0)
        again = frozen.frozen_features(tmp_path, Progress(Console(file=StringIO())), block)
        assert torch.equal(again.images, features.images)
        assert again.fingerprint() == features.fingerprint()
