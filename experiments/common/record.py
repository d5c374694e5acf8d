"""The record of one run: a folder with metrics.json, written anew (as a whole) after every finished piece."""

import json
import platform
import subprocess
import time
from collections.abc import Collection
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from experiments.common import checkpoint
from experiments.common.errors import InputError


def environment(packages: tuple[str, ...]) -> dict:
    """What else the numbers depend on."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor() + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""),
        "threads": torch.get_num_threads(),
        "packages": {name: _version(name) for name in ("torch", "hyperopt_ftp", *packages)},
        "git_commit": _git("rev-parse", "--verify", "HEAD"),
        "git_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def processor() -> str:
    """The name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        name = ""
    return name or platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


class RunRecord:
    """Opens the folder of a run, which `save` creates.

    A run goes on with more entries in the options that `grow`: more rates, say.

    Raises:
        InputError: the folder holds something other than a run with this very config.
    """

    def __init__(self, folder: Path, experiment: str, config: dict, grow: Collection[str] = ()) -> None:
        self.folder, self._grow = folder, grow
        self._file = folder / "metrics.json"
        self._start = time.perf_counter()
        self.content: dict[str, Any] = {
            "experiment": experiment,
            "status": "running",
            "config": config,
            "results": {},
            "wall_seconds": 0.0,
        }
        if self._file.exists():
            self.content = self._read(experiment, config)
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"--out {folder} exists and is no run of this experiment; choose another --out")
        self._before = self.content["wall_seconds"]

    def _read(self, experiment: str, config: dict) -> dict:
        advice = "choose another --out, or delete that folder to start anew"
        try:
            content = json.loads(self._file.read_text())
            kind, other = content["experiment"], dict(content["config"])
            if not {"status", "results", "wall_seconds"} <= content.keys():
                raise KeyError
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self._file} is damaged or of another program; {advice}") from error
        if kind != experiment:
            raise InputError(f"--out {self.folder} holds a run of '{kind}'; {advice}")
        names = [name for name in sorted({*other, *config}) if other.get(name) != config.get(name)]
        grown = {*self._grow} & other.keys()
        if names and all(name in grown and all(x in config[name] for x in other[name]) for name in names):
            return content | {"config": config, "status": "running"}
        if names:
            differences = ", ".join(f"{name} {other.get(name)} there, {config.get(name)} here" for name in names)
            raise InputError(f"--out {self.folder} holds another run ({differences}); {advice}")
        return content

    @property
    def finished(self) -> bool:
        return self.content["status"] == "finished"

    @property
    def results(self) -> dict[str, dict]:
        """One entry per finished training, by its name."""
        return self.content["results"]

    def note_environment(self, packages: tuple[str, ...]) -> None:
        """Where and with what the run goes on now; with what it began stays noted."""
        now = environment(packages)
        if now != self.content.setdefault("environment", now):
            later = self.content.setdefault("resumed_with", [])
            if now not in later:
                later.append(now)

    def check_data(self, fingerprint: str) -> None:
        """The data of a run must not change between its sessions; those of further splits come behind."""
        data = self.content.setdefault("data", {})
        if not fingerprint.startswith(data.get("fingerprint", "")):
            raise InputError(f"the data changed since the run in {self.folder} was started; choose another --out")
        data["fingerprint"] = fingerprint

    def save(self) -> None:
        self.content["wall_seconds"] = round(self._before + time.perf_counter() - self._start, 1)
        checkpoint.write_text(self._file, json.dumps(self.content, indent=1, allow_nan=False) + "\n")
