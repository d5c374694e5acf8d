"""A problem's figures as a Markdown table, and all of them as a figure: time against memory."""

from __future__ import annotations

from pathlib import Path
from textwrap import wrap
from typing import Any

from experiments.common.figures import SMALL, panels, save
from experiments.common.labels import apart
from experiments.common.looks import LOOKS
from experiments.common.report_kit import markdown

from ..measure import in_threads


def table(record: dict[str, Any]) -> str:
    rows = []
    for name, row in record["contenders"].items():
        ratio = "" if row["time_over_unroll"] is None else f"{row['time_over_unroll']:.2f}"
        cells = [_time(row["median_seconds"]), ratio, _time(row["first_call_seconds"])]
        rows.append([name, *cells, f"{row['peak_mib']:.1f} MiB", f"{row['error']:.1e}"])
    lines = [
        f"**{record['what']}** ({in_threads(record)}, medians of {record['rounds']}, other processes "
        f"{100 * record['share_of_other_processes']:.0f} % of the machine)",
        "",
        *markdown(["", "time", "of Unroll()", "first call", "peak", "error"], rows),
        "",
        f"Error: relative, of the hypergradient in float64; allowed {record['tolerance']:.1e}.",
    ]
    return "\n".join(lines)


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.1f} ms"


def draw(problems: dict[str, Any], path: Path) -> None:
    """Each point has its name beside it, in a column at the right of its panel."""
    figure, axes = panels(len(problems), 2.5 if len(problems) > 1 else 3.6, columns=1)  # of one the axis has its label
    for panel, record in zip(axes, problems.values(), strict=True):
        _panel(panel, record)
    axes[-1].set_xlabel("peak memory, MiB", fontsize=SMALL)
    days = sorted({record["machine"]["date"] for record in problems.values()})
    machine = next(iter(problems.values()))["machine"]
    figure.supxlabel(f"{machine['cpu']}, torch {machine['torch']}, {days[-1]}; lower left is better", fontsize=SMALL)
    save(figure, path)


def _panel(panel: Any, record: dict[str, Any]) -> None:
    points = sorted(
        (1e3 * row["median_seconds"], max(row["peak_mib"], 0.1), name, LOOKS[name])
        for name, row in record["contenders"].items()
    )
    panel.set_xscale("log")
    panel.set_yscale("log")
    title = f"{record['what']}, {in_threads(record)}".replace(", d/d", "\nd/d")
    panel.set_title("\n".join(line for part in title.split("\n") for line in wrap(part, 58)), fontsize=10)
    panel.set_ylabel("time, ms", fontsize=SMALL)
    panel.tick_params(which="both", labelsize=SMALL)
    panel.grid(True, alpha=0.3, linewidth=0.5)
    for time, peak, _, look in points:
        panel.plot(peak, time, look.marker, color=look.colour, markersize=6)
    low, high = min(p[1] for p in points), max(p[1] for p in points)
    bottom, top = points[0][0], points[-1][0]
    panel.set_xlim(low / 1.5, low * (1.5 * high / low) ** 1.9)  # the right half is for the names
    panel.set_ylim(bottom / 1.6, top * 1.6)
    places = [panel.transAxes.inverted().transform(panel.transData.transform((1, p[0])))[1] for p in points]
    heights = apart(places, 0.075, 0.04, 0.96)
    for (time, peak, name, look), height in zip(points, heights, strict=True):
        panel.annotate(
            name, (peak, time), xytext=(0.62, height), textcoords="axes fraction", fontsize=SMALL,
            va="center", arrowprops={"arrowstyle": "-", "color": look.colour, "linewidth": 0.7, "relpos": (0, 0.5)},
        )  # fmt: skip
