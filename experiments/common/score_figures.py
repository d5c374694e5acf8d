"""What methods learn against what they keep."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from experiments.common.estimate import Estimate
from experiments.common.figures import WIDTH, legend, legend_height, save
from experiments.common.looks import looks


def trade_off(file: Path, points: Mapping[str, tuple[Estimate, Estimate]], axis_labels: tuple[str, str]) -> None:
    """A point for each name with its standard errors: what is learned against what is kept."""
    of_name, drawn = looks(points), []
    figure = Figure(figsize=(WIDTH, 4.6 + legend_height(list(points))), layout="constrained")
    axes = figure.subplots()
    for name, ((x, x_error), (y, y_error)) in points.items():
        colour, marker, _ = of_name[name]
        look = {"color": colour, "marker": marker, "linestyle": "none", "markersize": 6}
        drawn.append(axes.errorbar(x, y, y_error, x_error, capsize=2, elinewidth=0.8, **look))
    axes.set_xlabel(axis_labels[0])
    axes.set_ylabel(axis_labels[1])
    axes.margins(0.12, 0.08)
    axes.spines[["top", "right"]].set_visible(False)
    legend(figure, drawn, list(points))
    save(figure, file)


def unbeaten(points: Mapping[str, tuple[Estimate, Estimate]]) -> str:
    """Says which points none is both further right and further up than."""
    means = {name: (x, y) for name, ((x, _), (y, _)) in points.items()}
    best = [
        name for name, (x, y) in means.items() if not any(other[0] > x and other[1] > y for other in means.values())
    ]
    return f"Not beaten in both at once: {'; '.join(best)}."  # there are commas in names
