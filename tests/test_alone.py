"""The command that makes each target alone."""

import re
import subprocess

import pytest

from tests import alone

MAKEFILE = (alone.ROOT / "Makefile").read_text()


def test_every_target_is_known():
    rules = {name for line in re.findall(r"^[a-z][a-z -]*(?=:)", MAKEFILE, flags=re.MULTILINE) for name in line.split()}
    assert set(alone.targets(MAKEFILE)) == rules
    assert rules >= alone.LEFT_OUT.keys()


def test_a_target_is_made_in_a_clone_that_goes_again(tmp_path, monkeypatch, capsys):
    repo = tmp_path / "repo"
    repo.mkdir()
    # The second one only passes where the first one has been made.
    (repo / "Makefile").write_text(".PHONY: first second\nfirst:\n\ttouch left\nsecond:\n\ttest -e left\n")
    identity = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    for command in (("init", "-q"), ("add", "."), (*identity, "commit", "-qm", "x")):
        subprocess.run(["git", *command], cwd=repo, check=True)
    monkeypatch.setattr(alone, "ROOT", repo)
    folder = tmp_path / "logs"
    monkeypatch.setattr("sys.argv", ["alone", str(folder)])
    assert alone.main() == 1
    printed = capsys.readouterr()
    assert re.findall(r"make (\w+) +(passed|FAILED)", printed.out) == [("first", "passed"), ("second", "FAILED")]
    assert printed.err == ""
    assert sorted(path.name for path in folder.iterdir()) == ["first.log", "second.log"]
    with pytest.raises(SystemExit):
        alone.main()
    assert f"{folder}: exists already" in capsys.readouterr().err

    (repo / "Makefile").write_text(".PHONY: first second\nfirst:\n\tfalse\nsecond:\n")
    monkeypatch.setattr("sys.argv", ["alone", str(tmp_path / "others"), "--targets", "first"])
    assert alone.main() == 0  # as it was committed
    assert "what is not committed is not in the clones" in capsys.readouterr().err
