"""Data of the studies: what is read from packages, and features that are the network's own."""

import io
import tarfile
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

from experiments.classification.cells import cell_pictures
from experiments.classification.data import Pictures
from experiments.classification.model import Classifier, answers
from experiments.common import frozen
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
