"""Time against memory, one panel a problem."""

from __future__ import annotations

from pathlib import Path
from textwrap import wrap
from typing import Any

__all__ = ["apart", "draw"]

COLOURS = {"ours": "#0b62a8", "torch": "#c2550a", "jax": "#2e7d32"}
COLUMNS = 2


def draw(problems: dict[str, Any], path: Path) -> None:
    """Each point has its name beside it, in a column at the right of its panel."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = -(-len(problems) // COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(10, 3.4 * rows), squeeze=False, layout="constrained")
    for panel in axes.flat[len(problems) :]:
        panel.set_axis_off()
    for panel, record in zip(axes.flat, problems.values(), strict=False):
        _panel(panel, record)
    days = sorted({record["machine"]["date"] for record in problems.values()})
    machine = next(iter(problems.values()))["machine"]
    figure.supxlabel(f"{machine['cpu']}, torch {machine['torch']}, {days[-1]}; lower left is better", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _panel(panel: Any, record: dict[str, Any]) -> None:
    points = sorted(
        (1e3 * row["median_seconds"], max(row["peak_mib"], 0.1), name, COLOURS[row["kind"]])
        for name, row in record["contenders"].items()
        if "peak_mib" in row
    )
    panel.set_xscale("log")
    panel.set_yscale("log")
    what, threads = record["what"].replace(", d/d", "\nd/d"), record["threads"]
    title = f"{what}, {threads} thread{'s' if threads > 1 else ''}"
    panel.set_title("\n".join(line for part in title.split("\n") for line in wrap(part, 62)), fontsize=9)
    panel.set_xlabel("peak memory, MiB", fontsize=9)
    panel.set_ylabel("time, ms", fontsize=9)
    panel.tick_params(which="both", labelsize=8)
    panel.grid(True, alpha=0.3, linewidth=0.5)
    if not points:
        return
    for time, peak, _, colour in points:
        panel.plot(peak, time, "o", color=colour, markersize=6)
    low, high = min(p[1] for p in points), max(p[1] for p in points)
    bottom, top = points[0][0], points[-1][0]
    panel.set_xlim(low / 1.5, low * (1.5 * high / low) ** 1.9)  # the right half is for the names
    panel.set_ylim(bottom / 1.6, top * 1.6)
    heights = apart([panel.transAxes.inverted().transform(panel.transData.transform((1, p[0])))[1] for p in points])
    for (time, peak, name, colour), height in zip(points, heights, strict=True):
        panel.annotate(
            name, (peak, time), xytext=(0.62, height), textcoords="axes fraction", fontsize=9, color=colour,
            va="center", arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.6},
        )  # fmt: skip


def apart(heights: list[float], gap: float = 0.085) -> list[float]:
    """Ascending heights, moved as little as it takes to lie ``gap`` apart within 0.04 and 0.96."""
    found: list[float] = []
    for height in heights:
        found.append(max(height, found[-1] + gap if found else 0.04))
    above = found[-1] - 0.96
    if above > 0:
        found[-1] -= above
        for k in range(len(found) - 2, -1, -1):
            found[k] = min(found[k], found[k + 1] - gap)
    return found
