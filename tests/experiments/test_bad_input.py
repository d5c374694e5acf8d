"""Every unusable option or picture is refused with a message that says what was given and what is allowed."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from experiments.classification.folders import folder_pictures


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
        (["--anchor-epochs", "-1"], "--anchor-epochs -1"),
        (["--batch-size", "0"], "--batch-size 0"),
        (["--lr", "nan"], "--lr nan: must be a number above 0"),
        (["--lr", "0"], "--lr 0.0"),
        (["--lr", "inf"], "--lr inf"),
        (["--anchor-lr", "-1"], "--anchor-lr -1.0"),
        (["--weight-decay", "-0.1"], "--weight-decay -0.1: must be a number of at least 0"),
        (["--radius-lr", "nan"], "--radius-lr nan"),
        (["--kappa", "1.5"], "--kappa 1.5: must lie between 0 and 1"),
        (["--kappa", "nan"], "--kappa nan"),
        (["--seeds", "0", "0"], "--seeds 0 0: give different integers"),
        (["--seeds", "-1"], "--seeds -1"),
        (["--method", "ftp", "ftp"], "--method ftp ftp"),
        (["--limit", "0"], "--limit 0"),
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
    "arguments", [["--epochs", "two"], ["--method", "sgd"], ["--anchor", "none"], ["--epoch", "2"]]
)
def test_what_argparse_refuses(workplace, capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        workplace.command(*arguments)
    assert stopped.value.code == 2
    assert arguments[-1] in capsys.readouterr().err


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
    assert result["id"] == result["accuracy"]["photo"]
    assert result["ood"] == result["accuracy"]["paint"]


def test_changed_pictures(workplace, capsys, tmp_path):
    root = make_domains(tmp_path / "pictures")
    arguments = ("--limit", "12", "--data-root", str(root), "--method", "linear", "--out", str(tmp_path / "run"))
    assert workplace.command(*arguments, "--seeds", "0", "1", interrupt=("linear, seed 1", 1)).status == 130
    capsys.readouterr()
    Image.new("RGB", (9, 9)).save(root / "photo" / "cat" / "0.png")
    error = refused(workplace, capsys, *arguments, "--seeds", "0", "1")
    assert "the pictures changed" in error


def test_fewer_than_two_domains(workplace, capsys, tmp_path):
    root = make_domains(tmp_path / "pictures", domains=("photo",))
    error = refused(workplace, capsys, "--data-root", str(root), "--out", str(tmp_path / "run"))
    assert "at least two domain folders" in error
    assert "only 'photo'" in error
    (tmp_path / "empty").mkdir()
    assert "found none" in refused(workplace, capsys, "--data-root", str(tmp_path / "empty"))
    assert not (tmp_path / "run").exists()


def test_empty_domain_folder(workplace, capsys, tmp_path):
    root = make_domains(tmp_path / "pictures")
    (root / "sketch" / "cat").mkdir(parents=True)
    error = refused(workplace, capsys, "--data-root", str(root))
    assert f"domain folder {root / 'sketch'} is empty" in error


def test_class_folder_without_pictures(workplace, capsys, tmp_path):
    root = make_domains(tmp_path / "pictures")
    for file in (root / "photo" / "dog").iterdir():
        file.unlink()
    assert f"class folder {root / 'photo' / 'dog'} holds no picture" in refused(
        workplace, capsys, "--data-root", str(root)
    )


def test_classes_that_differ(workplace, capsys, tmp_path):
    root = make_domains(tmp_path / "pictures")
    (root / "photo" / "dog").rename(root / "photo" / "fox")
    error = refused(workplace, capsys, "--data-root", str(root))
    assert "'photo' has 'fox' that 'paint' lacks and lacks 'dog'" in error


def test_single_class(workplace, capsys, tmp_path):
    root = make_domains(tmp_path / "pictures", classes=("cat",))
    assert "the single class 'cat'" in refused(workplace, capsys, "--data-root", str(root))


@pytest.mark.parametrize("damage", ["text", "truncated"])
def test_unreadable_picture(workplace, capsys, tmp_path, damage):
    root = make_domains(tmp_path / "pictures")
    file = root / "photo" / "dog" / "3.png"
    file.write_bytes(b"no picture" if damage == "text" else file.read_bytes()[:200])
    error = refused(workplace, capsys, "--data-root", str(root), "--out", str(tmp_path / "run"))
    assert f"cannot read the picture {file}" in error
    assert not (tmp_path / "run").exists()


def test_unknown_id_domain(workplace, capsys, tmp_path):
    root = make_domains(tmp_path / "pictures")
    error = refused(workplace, capsys, "--data-root", str(root), "--id-domain", "sketch", "--limit", "12")
    assert "--id-domain sketch: the domains are paint, photo" in error


def test_too_few_pictures(workplace, capsys, tmp_path):
    root = make_domains(tmp_path / "pictures", items=6)
    for name in ("cat", "dog"):
        for item in range(1, 6):
            (root / "photo" / name / f"{item}.png").unlink()
    error = refused(workplace, capsys, "--data-root", str(root), "--limit", "12")
    assert "too few pictures" in error
    assert "domain 'photo'" in error


def test_transparent_pictures_lie_on_white(tmp_path, quiet):
    root = make_domains(tmp_path / "pictures")
    Image.new("RGBA", (64, 64), (255, 0, 0, 0)).save(root / "paint" / "cat" / "0.png")
    with quiet as progress:
        pictures = folder_pictures(root, progress)
    assert pictures.items[0] == "cat/0"
    assert pictures.images[0].min() == 255
