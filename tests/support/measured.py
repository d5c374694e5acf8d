"""What a run of the main job measured, without what differs between equal runs."""

import json
from pathlib import Path


def numbers(folder: Path) -> dict:
    """Everything a run measured except times and memory."""
    content = json.loads((folder / "metrics.json").read_text())
    assert content["status"] == "finished"
    results = {
        name: {key: value for key, value in result.items() if key not in ("seconds", "images_per_second", "peak_mib")}
        for name, result in content["results"].items()
    }
    radii = {file.name: file.read_text() for file in sorted((folder / "radii").glob("*.json"))}
    steps = {file.name: steps_without_times(file) for file in sorted((folder / "steps").glob("*.csv"))}
    anchor = {"scores": content["anchor"]["scores"], "rates": content["rates"]}
    return {"results": results, "radii": radii, "steps": steps, **anchor}


def steps_without_times(file: Path) -> list[list[str]]:
    """Rows of a log of steps."""
    header, *rows = [line.split(",") for line in file.read_text().splitlines()]
    assert header == ["step", "loss", "right", "lr", "seconds"]
    return [row[:-1] for row in rows]
