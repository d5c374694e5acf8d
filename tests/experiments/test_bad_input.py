"""Every unusable option or picture is refused with a message that says what was given and what is allowed."""

import json
import shutil
import struct
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image

from experiments.classification.folders import folder_pictures
from experiments.common import pictures
from experiments.common.cli import guarded
from experiments.common.errors import InputError


def refused(workplace, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    done = workplace.command(*arguments)
    assert done.status == 2
    assert done.trainings == []
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "Traceback" not in error
    return error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs 0: must be an integer of at least 1"),
        (["--lr", "nan"], "--lr nan: must be a number above 0"),
        (["--anchor-lr", "-1"], "--anchor-lr -1.0: must be a number above 0"),
        (["--weight-decay", "-0.1"], "--weight-decay -0.1: must be a number of at least 0"),
        (["--lrs", "0.1", "0.1"], "--lrs 0.1 0.1: give different numbers above 0"),
        (["--lrs", "nan"], "--lrs nan: give different numbers above 0"),
        (["--wider", "tpgm", "0.2"], "--wider tpgm: the methods are adamw, ftp, linear"),
        (["--method", "ftp", "wise"], "--method wise is made of the weights of adamw; give both"),
        (["--method", "ftp", "ftp"], "--method ftp ftp: give any of linear, adamw"),
        (["--method", "muon", "adamw"], "--method muon: is for networks of linear layers"),
        (["--seeds", "0", "0"], "--seeds 0 0: give different integers"),
        (["--threads", "0"], "--threads 0: must be from 1 to"),
        (["--limit", "10"], "--limit 10 is too small: 8 classes need at least 24 items"),
        (["--id-domain", "OpenMoji"], "--id-domain goes with --data-root"),
        (["--device", "abacus"], "--device abacus cannot be used here"),
        (["--data-root", "nowhere"], "--data-root nowhere is not a folder"),
    ],
)
def test_options(workplace, capsys, arguments, message):
    assert message in refused(workplace, capsys, *arguments, "--out", "runs/refused")
    assert not Path("runs/refused").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--epochs", "two"], "two"), (["--anchor", "none"], "imagenet"), (["--epoch", "2"], "--epochs")],
)
def test_what_the_command_line_refuses(workplace, capsys, arguments, said):
    with pytest.raises(SystemExit) as stopped:
        workplace.command(*arguments)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("size", [(10**15,), (2**40, 2**40)])
def test_a_run_that_memory_is_too_small_for_says_so(capsys, size):
    assert guarded(lambda: torch.empty(*size)) == 2
    assert "there is not enough memory for a run of this size" in capsys.readouterr().err

    def wrong():
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        guarded(wrong)


def test_out_with_another_run(workplace, capsys, finished):
    before = {file: file.read_bytes() for file in finished.rglob("*") if file.is_file()}
    error = refused(workplace, capsys, "--epochs", "2", "--lr", "0.001", "--out", str(finished))
    assert "holds another run (lr 0.0005 there, 0.001 here); choose another --out" in error
    assert {file: file.read_bytes() for file in finished.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("notes.txt", "mine", "is no run of this experiment"),
        ("metrics.json", "{", "is damaged or of another program"),
        ("metrics.json", "[1]", "is damaged or of another program"),
        (
            "metrics.json",
            json.dumps({"experiment": "x", "config": {}, "status": "", "results": {}, "wall_seconds": 0}),
            "a run of 'x'",
        ),
    ],
)
def test_out_with_something_else(workplace, capsys, tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    assert message in refused(workplace, capsys, "--out", str(tmp_path))
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == content


def test_out_is_a_file(workplace, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert "is no run" in refused(workplace, capsys, "--out", str(tmp_path / "file"))


def make_domains(root: Path, domains=("paint", "photo"), classes=("cat", "dog"), items: int = 6) -> Path:
    generator = torch.Generator().manual_seed(0)
    for domain in domains:
        for name in classes:
            folder = root / domain / name
            folder.mkdir(parents=True)
            for item in range(items):
                pixels = torch.randint(256, (20, 30, 3), dtype=torch.uint8, generator=generator)
                Image.fromarray(pixels.numpy()).save(folder / f"{item}.png")
    return root


def test_folders_of_ones_own(workplace, tmp_path):
    root = make_domains(tmp_path / "pictures")
    (root / ".hidden").mkdir()
    (root / "photo" / "cat" / "notes.txt").write_text("not a picture")
    arguments = ("--limit", "12", "--method", "ftp", "--data-root", str(root), "--id-domain", "photo")
    done = workplace.command(*arguments, "--out", "runs/own")
    assert done.status == 0
    content = json.loads(Path("runs/own/metrics.json").read_text())
    assert (content["data"]["domains"], content["data"]["id_domain"]) == (["paint", "photo"], "photo")
    result = content["results"]["ftp-seed0"]
    assert result["id"] == result["scores"]["photo"]
    assert result["ood"] == result["scores"]["paint"]


def test_changed_pictures(workplace, capsys, tmp_path):
    root = make_domains(tmp_path / "pictures")
    arguments = ("--limit", "12", "--data-root", str(root), "--method", "linear", "--out", str(tmp_path / "run"))
    assert workplace.command(*arguments, "--seeds", "0", "1", interrupt=("linear, seed 1", 1)).status == 130
    capsys.readouterr()
    Image.new("RGB", (9, 9)).save(root / "paint" / "cat" / "0.png")  # in paint every picture is used
    error = refused(workplace, capsys, *arguments, "--seeds", "0", "1")
    assert "the data changed" in error


def clear(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda r: shutil.rmtree(r / "paint"), "at least two domain folders .* only 'photo'"),
        (lambda r: (r / "paint").rename(r / "ood"), "domain folder .*ood: id, ood, scores, method"),
        (lambda r: (r / "sketch" / "cat").mkdir(parents=True), "domain folder .*sketch is empty"),
        (lambda r: clear(r / "photo" / "dog"), "class folder .*photo.dog holds no picture"),
        (lambda r: (r / "photo/dog").rename(r / "photo/fox"), "'photo' has 'fox' that 'paint' lacks and lacks 'dog'"),
        (lambda r: [shutil.rmtree(r / domain / "dog") for domain in ("paint", "photo")], "the single class 'cat'"),
        (lambda r: (r / "photo/dog/3.png").write_bytes(b"no picture"), "cannot read the picture .*photo/dog/3.png"),
        (lambda r: Image.new("RGB", (9, 9)).save(r / "photo/dog/3.png", format="TIFF"), "PNG, JPEG, WEBP, BMP, GIF"),
    ],
)
def test_wrong_folders(tmp_path, quiet, spoil, said):
    root = make_domains(tmp_path / "pictures")
    spoil(root)
    with quiet as progress, pytest.raises(InputError, match=said):
        folder_pictures(root, progress)


@pytest.mark.parametrize("place", ["photo", "photo/cat", "photo/cat/3.png"], ids=["domain", "class", "file"])
def test_a_link_that_leaves_the_root(workplace, capsys, tmp_path, place):
    root, elsewhere = make_domains(tmp_path / "pictures"), make_domains(tmp_path / "pictures2")
    link = root / place
    shutil.rmtree(link) if link.is_dir() else link.unlink()
    link.symlink_to(elsewhere / place)
    error = refused(workplace, capsys, "--data-root", str(root), "--out", str(tmp_path / "run"))
    assert f"{link} leads to {(elsewhere / place).resolve()}, outside of --data-root {root}; copy the pictures" in error
    assert not (tmp_path / "run").exists()


def test_links_within_the_root_and_a_root_that_is_one(tmp_path, quiet):
    root = make_domains(tmp_path / "pictures")
    (root / "photo" / "cat" / "6.png").symlink_to("0.png")
    (root / "sketch").mkdir()
    for name in ("cat", "dog"):
        (root / "sketch" / name).symlink_to(root / "photo" / name)
    (tmp_path / "link").symlink_to(root)
    with quiet as progress:
        pictures = folder_pictures(tmp_path / "link", progress)
    assert pictures.domain_names == ("paint", "photo", "sketch")
    photo, sketch = pictures.of_domain(1).images, pictures.of_domain(2).images
    assert torch.equal(photo, sketch)
    assert torch.equal(photo[0], photo[6])


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds not one pixel: whoever decodes it finds it broken, not large."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("width", "height", "message"),
    [
        (8000, 8125, "cannot read the picture {}"),  # the largest that is tried
        (8000, 8126, "the picture {} is too large: 8000 x 8126 pixels, at most 65,000,000 are read; shrink or remove"),
        (10000, 9000, "the picture {} is too large: Image size (90000000 pixels), at most 65,000,000"),  # Pillow warns
        (20000, 20000, "the picture {} is too large: Image size (400000000 pixels), at most 65,000,000"),  # it refuses
    ],
)
def test_too_many_pixels(workplace, capsys, tmp_path, width, height, message):
    root = make_domains(tmp_path / "pictures")
    file = root / "photo" / "dog" / "3.png"
    file.write_bytes(png_header(width, height))
    error = refused(workplace, capsys, "--data-root", str(root), "--out", str(tmp_path / "run"))
    assert message.format(file) in error
    assert "Warning" not in error
    assert not (tmp_path / "run").exists()


def test_too_many_bytes(workplace, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "BYTES", 3000)
    root = make_domains(tmp_path / "pictures")
    file = root / "photo" / "dog" / "3.png"
    file.write_bytes(file.read_bytes().ljust(3001))
    error = refused(workplace, capsys, "--data-root", str(root))
    assert f"the picture {file} is too large: 3,001 bytes, at most 3,000 are read" in error


def test_formats_that_are_read_under_any_of_their_names(tmp_path):
    for kind in pictures.FORMATS:
        for suffix in pictures.SUFFIXES:
            Image.new("RGB", (9, 9)).save(tmp_path / f"0{suffix}", format=kind)
            assert max(pictures.read_picture(tmp_path / f"0{suffix}").getpixel((4, 4))) < 10


def test_unknown_id_domain_and_too_few_pictures(workplace, capsys, tmp_path):
    root = make_domains(tmp_path / "pictures")
    error = refused(workplace, capsys, "--data-root", str(root), "--id-domain", "sketch", "--limit", "12")
    assert "--id-domain sketch: the domains are paint, photo" in error
    for name in ("cat", "dog"):
        for item in range(1, 6):
            (root / "photo" / name / f"{item}.png").unlink()
    assert "too few pictures" in refused(workplace, capsys, "--data-root", str(root), "--limit", "12")


def test_transparent_pictures_lie_on_white(tmp_path, quiet):
    root = make_domains(tmp_path / "pictures")
    Image.new("RGBA", (64, 64), (255, 0, 0, 0)).save(root / "paint" / "cat" / "0.png")
    with quiet as progress:
        pictures = folder_pictures(root, progress)
    assert pictures.items[0] == "cat/0"
    assert pictures.images[0].min() == 255
