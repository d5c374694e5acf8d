"""Pictures of one's own, with a network by its name: whole runs on folders that a test draws, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("timm")
pytest.importorskip("torchvision")
pytest.importorskip("segmentation_models_pytorch")

import timm

from experiments.classification.own import box_of, own_pictures
from experiments.classification.paper import PAPERS, SOURCES
from experiments.classification.study import STUDY, make_task
from experiments.classification.task import Config
from experiments.common.errors import InputError
from experiments.common.named import named_network
from experiments.segmentation import study as segmentation
from experiments.segmentation.model import overlaps
from experiments.segmentation.own import own_scenes
from experiments.segmentation.scenes import IGNORED
from tests.experiments.running import ran, refused, results

DOMAINS, CLASSES, EACH = ("photo", "sketch"), ("cat", "dog", "emu"), 8
TINY = ("--network", "test_resnet", "--size", "64", "--batch-size", "8", "--epochs", "1", "--seeds", "0")


def picture(file: Path, number: int, side: int = 40) -> None:
    """Noise whose mean colour tells the number."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 60, (side, side + 8, 3))
    pixels[..., number % 3] += 150
    Image.fromarray(pixels.astype(np.uint8)).save(file)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for domain in DOMAINS:
        for label, title in enumerate(CLASSES):
            for number in range(EACH):
                suffix = "png" if number % 2 else "jpg"
                picture(tmp_path / "own" / domain / title / f"{domain} {number}.{suffix}", label)
    return tmp_path / "own"


def weights(file: Path, name: str = "test_resnet") -> Path:
    """As if pre-trained, with a classifier of its own."""
    torch.manual_seed(7)
    torch.save(timm.create_model(name).state_dict(), file)
    return file


def test_a_run_and_the_same_one_after_a_stop(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ("--data", str(folder), *TINY, "--anchor", "imagenet", "--checkpoint", str(weights(tmp_path / "w.pt")))
    given = (*given, "--method", "adamw", "ftp")
    whole = ran(STUDY, *given, "--out", "whole")
    assert whole.status == 0
    found = results(Path("whole"))
    assert set(found) == {"adamw-seed0", "ftp-seed0"}
    assert set(found["ftp-seed0"]["scores"]) == set(DOMAINS)
    assert ran(STUDY, *given, "--out", "half", stop_before="ftp, seed 0").status == 130
    assert ran(STUDY, *given, "--out", "half").begun == ["ftp, seed 0"]
    assert results(Path("half"), "peak", "images") == results(Path("whole"), "peak", "images")
    report = Path("whole/report.md").read_text()
    assert "Fine-tuned on photo alone, from the weights of test_resnet (w.pt, " in report


def test_an_anchor_of_random_weights_is_trained_in_all_domains_and_the_report_says_so(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ("--data", str(folder), *TINY, "--domain", "sketch", "--method", "linear", "--anchor-epochs", "1")
    assert ran(STUDY, *given, "--out", "run").status == 0
    assert "from the weights of test_resnet (random)" in Path("run/report.md").read_text()
    content = json.loads(Path("run/metrics.json").read_text())
    assert set(content["anchor"]["scores"]) == set(DOMAINS)
    assert content["data"]["id_domain"] == "sketch"


def test_what_is_drawn_is_what_lies_there(folder, quiet):
    """In the middle without a generator; and of it a part, by the generator alone."""
    pictures, own = own_pictures(Config(data=str(folder), size=32), quiet)
    assert len(pictures.items) == len(DOMAINS) * len(CLASSES) * EACH
    shown = own.read(pictures.images)
    assert shown.shape == (len(pictures.items), 3, 32, 32)
    assert torch.equal(shown.float().mean((2, 3)).argmax(1), pictures.labels)  # the colour is the class
    assert torch.equal(own.read(torch.tensor([[3, 1]])), shown[[3, 1]][None])
    drawn = [own.read(torch.arange(4), torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_part_of_a_picture_lies_inside_and_has_its_share():
    assert box_of(80, 40, None) == (22.5, 2.5, 57.5, 37.5)
    for draw in torch.rand(200, 5, generator=torch.Generator().manual_seed(0)).tolist():
        left, top, right, bottom = box_of(90, 50, draw)
        assert 0 <= left < right <= 90
        assert 0 <= top < bottom <= 50
        assert (right - left) * (bottom - top) <= (0.08 + 0.92 * draw[0]) * 90 * 50 + 1e-6
        if right - left < 90 and bottom - top < 50:
            assert (right - left) * (bottom - top) == pytest.approx((0.08 + 0.92 * draw[0]) * 90 * 50)


def test_a_network_by_name(tmp_path):
    """timm's, torchvision's, and CLIP's projection, which is kept: the head is zero, all else is as in the file."""
    for name, projection in (("test_resnet", None), ("test_resnet", 5), ("shufflenet_v2_x0_5", None)):
        model = named_network(name, 3, 64, None, projection)
        assert model(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).tolist() == [[0.0] * 3] * 2
        assert model.classifier.in_features == (projection or model.classifier.in_features)
        own = {parameter for layer in model.layers for parameter in layer}
        assert own | {"classifier.weight", "classifier.bias"} == {
            parameter for parameter, _ in model.named_parameters()
        }
    whole = torch.load(weights(tmp_path / "w.pt"), weights_only=True)
    moco = {f"module.base_encoder.{name}": value for name, value in whole.items()}
    torch.save({"state_dict": moco | {"module.momentum_encoder.x": torch.ones(1)}}, tmp_path / "moco.tar")
    for file in ("w.pt", "moco.tar"):
        loaded = named_network("test_resnet", 3, 64, tmp_path / file, None).backbone.state_dict()
        assert all(torch.equal(value, whole[name]) for name, value in loaded.items())
        assert len(whole) == len(loaded) + 2  # the classifier


def test_the_largest_logit_among_a_domains_classes_counts(folder, quiet):
    """As ImageNet-A and -R have 200 classes of 1,000."""
    for file in (folder / "sketch" / "cat").iterdir():
        file.unlink()
    (folder / "sketch" / "cat").rmdir()
    task = make_task(Config(data=str(folder), paper="imagenet", network="test_resnet", size=64), folder, quiet)

    class Cat(torch.nn.Module):
        def forward(self, images):
            return torch.tensor([3.0, 1.0, 2.0]).expand(len(images), -1)

    found = task.answers(Cat())
    assert set(found["photo"].tolist()) == {0}
    assert set(found["sketch"].tolist()) == {2}
    with pytest.raises(InputError, match="the domain sketch lacks the class cat"):
        own_pictures(Config(data=str(folder)), quiet)


@pytest.mark.parametrize("paper", PAPERS)
def test_the_papers_settings_and_what_is_given_besides(paper, folder, tmp_path):
    """Every rate is the only one of its method; what no source states is named in the report."""
    file = weights(tmp_path / "w.pt")
    config = STUDY.read(["--paper", paper, "--data", str(folder), "--checkpoint", str(file), "--epochs", "2"]).config
    config.check()
    assert config.epochs == 2
    for name, value in PAPERS[paper].items():
        assert name == "epochs" or getattr(config, name) == value
    assert [len(config.rates_of(method)) for method in config.methods] == [1, 1, 1]
    assert "Chosen here: " in SOURCES[paper]


def test_the_papers_methods_in_a_run(folder, tmp_path, monkeypatch):
    """SGD, FTPSGD at their own rates, none chosen, the gradient clipped."""
    monkeypatch.chdir(tmp_path)
    (folder / "photo").rename(folder / "real")
    given = ("--paper", "domainnet", "--data", str(folder), *TINY, "--checkpoint", str(weights(tmp_path / "w.pt")))
    given = (*given, "--projection", "1000", "--clip", "0.1", "--warm-up", "0.5", "--shares", "0.2", "0.5", "0.3")
    assert ran(STUDY, *given, "--out", "run").status == 0
    found = results(Path("run"))
    assert [found[f"{name}-seed0"]["lr"] for name in ("nesterov", "ftp_nesterov", "linear")] == [1e-3, 1e-2, 1e-3]
    assert SOURCES["domainnet"] in Path("run/report.md").read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--network resnet50", "--network: is for pictures of your own; give --data DIR, too"),
        ("--paper imagenet", "--paper: is for pictures of your own; give --data DIR, too"),
        ("--data none", "--data none is not a folder"),
        ("--data own --pictures drawn", "--data is in place of --pictures"),
        ("--data own --checkpoint w.pt", "--checkpoint: is for a --network"),
        ("--data own --network resnet50 --anchor imagenet", "nothing is downloaded: give --checkpoint FILE"),
        ("--data own --network resnet50 --checkpoint v.pt", "--checkpoint v.pt is not a file"),
        ("--data own --paper domainnet", "nothing is downloaded: give --checkpoint FILE"),
        ("--data own --clip 0", "--clip 0.0: give a share below 1, a norm above 0"),
        ("--data own --wider ftp 0.1 ftp 0.2", "without --lrs there is nothing to choose from"),
    ],
)
def test_wrong_options(options, said, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder.parent)
    assert refused(STUDY, *options.split())
    assert said in " ".join(capsys.readouterr().err.split())


def only(folder: Path, *kept: str) -> None:
    for domain in folder.iterdir():
        if domain.name not in kept:
            domain.rename(folder.parent / domain.name)


def lost(folder: Path) -> None:
    (folder / "sketch" / "dog").rename(folder.parent / "dog")


def emptied(folder: Path) -> None:
    (folder / "sketch" / "ant").mkdir()


def no_picture(folder: Path) -> None:
    (folder / "sketch" / "dog" / "9.jpg").write_bytes(b"GIF89a of a kind")


def link_out(folder: Path) -> None:
    picture(folder.parent / "secret.png", 0)
    (folder / "sketch" / "dog" / "9.png").symlink_to(folder.parent / "secret.png")


def huge(folder: Path) -> None:
    Image.new("1", (10_000, 7_000)).save(folder / "photo" / "dog" / "9.png")


def of_another_kind(folder: Path) -> None:
    Image.new("RGB", (8, 8)).save(folder / "photo" / "dog" / "9.png", format="TIFF")


@pytest.mark.parametrize(
    ("spoil", "options", "said"),
    [
        (lambda folder: only(folder), "", "the domains are none"),
        (lambda folder: only(folder, "photo"), "", "the domains are photo"),
        (lost, "", "the domain sketch lacks the class dog"),
        (emptied, "", "Found no valid file for the classes ant"),
        (no_picture, "", "sketch/dog/9.jpg (cannot identify image file"),
        (link_out, "", "secret.png, outside of own; copy it there"),
        (huge, "", "10000 x 7000 pixels, at most 65,000,000 are read"),
        (of_another_kind, "", "formats: PNG, JPEG, WEBP, BMP, GIF"),
        (None, "--domain clipart", "--domain clipart: the domains are photo, sketch"),
        (None, "--network test_resnte", "lack it; did you mean 'test_resnet'?"),
        (None, "--network test_vit3 --size 40", "makes no features of pictures of --size 40: Input height"),
        (None, "--network test_resnet --checkpoint w.pt", "--checkpoint w.pt is of another network: "),
        (None, "--network test_vit --size 160 --checkpoint code.pt", "cannot be read ("),
    ],
)
def test_wrong_data_is_refused_before_any_training(spoil, options, said, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder.parent)
    weights(Path("w.pt"), "test_efficientnet")
    if spoil is not None:
        spoil(folder)
    torch.save(torch.nn.Linear(2, 2), "code.pt")
    found = ran(STUDY, "--data", "own", *options.split())
    assert found.status == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert found.begun == []


# -- VOC's layout ------------------------------------------------------------------------------------------------------


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Two squares, of class 1 and 2 by turns, on a background, with a rim of no class."""
    root = tmp_path / "voc"
    for place in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / place).mkdir(parents=True)
    for number in range(12):
        picture(root / "JPEGImages" / f"{number}.jpg", number)
        mask = np.zeros((40, 48), np.uint8)
        mask[8:32, 12:36], mask[10:30, 14:34] = IGNORED, 1 + number % 2
        drawn = Image.fromarray(mask)
        drawn.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + [224] * 3 * 253)
        drawn.save(root / "SegmentationClass" / f"{number}.png")
    for part, numbers in (("train", range(8)), ("val", range(8, 12))):
        (root / "ImageSets" / "Segmentation" / f"{part}.txt").write_text("".join(f"{n}\n" for n in numbers))
    return root


VOC = (
    "--data",
    "voc",
    "--anchor",
    "imagenet",
    "--size",
    "64",
    "--epochs",
    "1",
    "--seeds",
    "0",
    "--lrs",
    "1e-3",
    "1e-2",
)
VOC = (*VOC, "--methods", "adamw", "ftp")


def test_a_run_on_vocs_layout_that_is_stopped_and_gone_on_with(voc, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(timm.create_model("resnet18").state_dict(), "r18.pt")
    given = (*VOC, "--network", "resnet18", "--checkpoint", "r18.pt", "--out", "run")
    assert ran(segmentation.STUDY, *given, stop_before="split 0, adamw, lr 0.01").status == 130
    before = results(Path("run"))
    assert len(ran(segmentation.STUDY, *given).begun) == 3
    found = results(Path("run"))
    assert {**found, **before} == found
    assert len(found) == 4
    assert set(found["split 0, adamw, lr 0.001"]["answers"]["adamw"]) >= {"val", "fog", "brightness"}
    assert "resnet18" in Path("run/report.md").read_text()


def test_a_pixel_of_no_class_is_in_no_loss_and_no_overlap(voc):
    train, test, classes = own_scenes(voc, 64)
    assert (classes, train.masks.unique().tolist()) == (3, [0, 1, 2, IGNORED])
    assert set(train.groups).isdisjoint(test.groups)

    class Ones(torch.nn.Module):
        def forward(self, images):
            return torch.tensor([0.0, 1.0, 0.0]).reshape(1, 3, 1, 1).expand(len(images), 3, 64, 64)

    found = overlaps(Ones(), test, classes, torch.device("cpu"))
    for counts, mask in zip(found, test.masks, strict=True):
        sizes = [int((mask == label).sum()) for label in range(3)]
        assert counts.tolist() == [[0, sizes[0]], [sizes[1], sum(sizes)], [0, sizes[2]]]
    options = segmentation.Config(anchor="imagenet", data=str(voc), size=64).options(0, 1e-3)
    task = segmentation.COMPARISON.make_task(options, voc, None)
    logits = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    masks = test.masks[:2].long()
    known = masks != IGNORED
    assert torch.allclose(
        task.loss(logits, masks), -logits.log_softmax(1).gather(1, masks.clamp(max=2)[:, None])[:, 0][known].mean()
    )


def both_lists(root: Path) -> None:
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("0\n")


def new_class(root: Path) -> None:
    Image.new("L", (48, 40), 7).save(root / "SegmentationClass" / "8.png")


def rgb_mask(root: Path) -> None:
    Image.new("RGB", (48, 40)).save(root / "SegmentationClass" / "8.png")


@pytest.mark.parametrize(
    ("spoil", "options", "said"),
    [
        (None, "--anchor styles", "give a folder, and --anchor imagenet"),
        (None, "--data none", "--data none --anchor imagenet: give a folder"),
        (None, "--network resnet18", "--network NAME and --checkpoint FILE go together"),
        (None, "--network resnet18 --checkpoint x.pt", "--checkpoint x.pt is not a file"),
        (None, "--network resnte18 --checkpoint w.pt", "get_encoder_names(); did you mean 'resnet18'?"),
        (None, "--network resnet18 --checkpoint w.pt", "--checkpoint w.pt is of another network"),
        (lambda root: (root / "ImageSets/Segmentation/val.txt").unlink(), "", "val.txt is not there, or empty"),
        (lambda root: (root / "JPEGImages/8.jpg").unlink(), "", "cannot read the picture voc/JPEGImages/8.jpg"),
        (both_lists, "", "0 is both in train.txt and in val.txt"),
        (new_class, "", "the classes [0, 1, 2], of val.txt [0, 1, 2, 7]"),
        (rgb_mask, "", "the mask of 8 is (48, 40), RGB; it must be (48, 40) pixels, with a palette or grey"),
    ],
)
def test_wrong_scenes_are_refused_before_any_training(spoil, options, said, voc, monkeypatch, capsys):
    monkeypatch.chdir(voc.parent)
    weights(Path("w.pt"), "test_efficientnet")
    if spoil is not None:
        spoil(voc)
    found = ran(segmentation.STUDY, *VOC, *options.split())
    assert found.status == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert found.begun == []
