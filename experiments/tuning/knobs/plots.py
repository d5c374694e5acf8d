"""The figures of the study."""

from pathlib import Path

import numpy as np

from experiments.common.estimate import Estimate, estimate
from experiments.common.figures import SMALL, Curve, curves, heading, panels, save
from experiments.common.looks import LOOKS
from experiments.common.score_figures import trade_off
from experiments.tuning.knobs.tables import TITLES
from experiments.tuning.knobs.tuning import SOURCES, best_round, of_source

DEFAULTS = {"radius_lr": 1e-2, "kappa": 1.0}
_PLACES = {"lr": 0, "radius_lr": 1, "kappa": 2}  # in a point of a way


def ways(file: Path, content: dict, style_names: list[str], knob: str) -> None:
    """A knob by round: a panel for each style, a curve for each source, by its short name: a panel is narrow."""
    by_style = {}
    for style in content["config"]["styles"]:
        results = [result for result in content["results"].values() if result["style"] == style]
        named = {}
        for source in SOURCES:
            paths = [[p[_PLACES[knob]] for p in r["sources"][source]["bilevel"]["way"]] for r in results]
            found = [estimate([path[k] for path in paths]) for k in range(len(paths[0]))]
            error = None if found[0][1] is None else [e or 0.0 for _, e in found]
            named[source] = Curve(range(len(found)), [mean for mean, _ in found], error)
        if knob in DEFAULTS:
            ends = [0, len(next(iter(named.values())).x) - 1]
            named["default"] = Curve(ends, [DEFAULTS[knob]] * 2)
        by_style[f"fine-tuned on {style_names[style]}"] = named
    curves(file, by_style, "round", knob, log_y=knob != "kappa")


def surface(file: Path, content: dict, style_names: list[str], source: str) -> None:
    """Held-out loss over radius_lr and kappa at the best of the grid's learning rates, and bilevel's ways on it."""
    config = content["config"]
    shape = tuple(len(config[name]) for name in ("lrs", "radius_lrs", "kappas"))
    figure, all_axes = panels(len(config["styles"]), 3.3, sharey=True)
    colour = LOOKS["FTP, hypergradient"].colour
    for axes, style in zip(all_axes, config["styles"], strict=True):
        results = [result for result in content["results"].values() if result["style"] == style]
        losses = [[of_source(some, source) for some in result["searches"]["grid"]["losses"]] for result in results]
        seen = np.array(losses).reshape(-1, *shape).min(axis=1).mean(axis=0)  # [radius_lr, kappa]
        kappas, order = np.sort(config["kappas"]), np.argsort(config["kappas"])
        filled = axes.contourf(
            config["radius_lrs"], kappas, np.ma.masked_invalid(seen[:, order].T), levels=12, cmap="viridis"
        )
        bar = figure.colorbar(filled, ax=axes, location="bottom", format="%.3g")
        bar.set_label("held-out cross-entropy", fontsize=SMALL)
        bar.set_ticks(list(bar.get_ticks()[1::4]))
        bar.ax.tick_params(labelsize=SMALL)
        for result in results:
            way = np.array(result["sources"][source]["bilevel"]["way"])[:, 1:]
            axes.plot(*way.T, color=colour, linewidth=1.2, marker="o", markersize=3)
            best = best_round(result["sources"][source]["bilevel"]["values"])
            axes.plot(*way[best], color=colour, marker="*", markersize=14, markeredgecolor="white", linestyle="none")
        axes.plot(*DEFAULTS.values(), color="white", marker="X", markersize=9, markeredgecolor="black", clip_on=False)
        axes.set_facecolor("#dddddd")  # where a way has left the grid
        axes.set_xscale("log")
        axes.set_xlabel("radius_lr")
        heading(axes, f"fine-tuned on {style_names[style]}")
    figure.supylabel("kappa", fontsize=10)
    save(figure, file)


def kept_and_learned(file: Path, content: dict, source: str) -> dict[str, tuple[Estimate, Estimate]]:
    """Accuracy in the own style against that in the unseen one; returns the points."""
    rows = content["summary"]["methods"][source]
    found = {TITLES[method]: rows[method]["accuracy"] for method in TITLES} | {
        "anchor": content["summary"]["anchor"]["accuracy"]
    }
    points = {name: (row["own"]["value"], row["unseen"]["value"]) for name, row in found.items()}
    known = {name: pair for name, pair in points.items() if None not in pair}
    trade_off(file, known, ("accuracy in the own style (%)", "accuracy in the unseen style (%)"))
    return known
