"""The stories run small, what they tell is true, and their page shows what they print."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from examples.stories import folder, forgetting, layers, schedule

ROOT = Path(__file__).parent.parent
STORIES = ROOT / "examples" / "stories"
SECTIONS = (ROOT / "docs" / "stories.md").read_text().split("\n## ")[1:]


def page(name: str) -> str:
    (section,) = (text for text in SECTIONS if f"python -m examples.stories.{name} FOLDER" in text)
    return section


def printed(name: str) -> str:
    """What the page says that the story prints: its last block of text."""
    return re.findall(r"```text\n(.*?)```", page(name), flags=re.S)[-1]


def lines(text: str) -> set[str]:
    """Without their numbers, nor the spaces that a number's width makes, nor which rate was chosen."""
    return {" ".join(re.sub(r"\d[\d.e-]*", "#", line).replace("chosen", "").split()) for line in text.splitlines()}


def check(name: str, figures: set[str], tmp_path: Path, said: str) -> None:
    """The figures are there, the page shows them, and it shows such lines as were printed."""
    assert {file.name for file in tmp_path.iterdir()} == figures
    shown = set(re.findall(r"\]\(figures/stories/([\w-]+\.png)\)", page(name)))
    assert shown == figures
    assert len(said.splitlines()) > 3
    assert lines(said) - lines(printed(name)) == set()


def test_ftp_forgets_less_than_adamw(tmp_path, capsys):
    runs = forgetting.main(tmp_path, steps=100, seeds=2, lrs=(1e-3, 3e-3))
    check("forgetting", {"forgetting.png"}, tmp_path, capsys.readouterr().out)
    for lr in (1e-3, 3e-3):
        for seed in range(2):
            start, adamw = runs["AdamW"][lr][seed][0], runs["AdamW"][lr][seed][-1]
            wise, ftp = runs["WiSE-FT"][lr][seed][-1], runs["FTPAdamW"][lr][seed][-1]
            assert min(adamw.trained, wise.trained, ftp.trained) > start.trained + 2
            assert adamw.others < start.others - 10
            assert min(wise.others, ftp.others) > adamw.others + 5


def test_a_layer_in_the_middle_is_held(tmp_path, capsys):
    measured = layers.main(tmp_path, steps=100)
    check("layers", {"radii.png", "distance.png"}, tmp_path, capsys.readouterr().out)
    ftp, adamw = measured["FTPAdamW"], measured["AdamW"]
    assert ftp["4.weight"]["distance"] < 0.05 < adamw["4.weight"]["distance"]
    assert max(ftp, key=lambda layer: ftp[layer]["radius"]) == "0.weight"
    assert all(ftp[layer]["distance"] < adamw[layer]["distance"] for layer in ftp if layer.endswith("weight"))


def test_a_schedule_moved_by_its_gradient_is_better_on_test_digits(tmp_path, capsys):
    losses = schedule.main(tmp_path, rounds=10, runs=2, tests=1)
    check("schedule", {"schedule.png", "tuning.png"}, tmp_path, capsys.readouterr().out)
    assert max(losses["bilevel, Unroll"]) < 0.7 * losses["default"][0]
    assert max(losses["random search"]) < 0.7 * losses["default"][0]


@pytest.mark.parametrize("name", ["forgetting", "layers", "schedule"])
def test_numbers_in_the_text_are_printed(name):
    """Those with a point, and percentages, unless they are settings that the code shows."""
    text = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)", "", page(name), flags=re.S)
    numbers = re.findall(r"\d+\.\d+|\d+(?= %)", text)
    assert len(numbers) >= 3
    known = set(re.findall(r"\d+(?:\.\d+)?", "".join(re.findall(r"```.*?```", page(name), flags=re.S))))
    assert [number for number in numbers if number not in known] == []
    seconds = re.findall(r"^took (\d+) s$", printed(name), flags=re.M)  # less than a minute, as the page says
    assert [int(x) < 60 for x in seconds] == [True]


def test_a_story_asks_for_a_folder_and_makes_it(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/a/layers.py"])
    with pytest.raises(SystemExit, match=r"give a folder for the figures: python -m examples\.stories\.layers FOLDER"):
        folder.figures()
    monkeypatch.setattr("sys.argv", ["/a/layers.py", str(tmp_path / "b" / "c")])
    assert folder.figures().is_dir()
