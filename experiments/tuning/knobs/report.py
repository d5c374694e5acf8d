"""What a run says at its end: means over seeds, of each the mean over the styles, in tables and figures."""

from collections.abc import Callable
from pathlib import Path
from statistics import fmean, median

import numpy as np

from experiments.common.estimate import Estimate, estimate
from experiments.common.figures import SMALL, Curve, curves, heading, mean_curve, panels, save
from experiments.common.looks import LOOKS
from experiments.common.record import RunRecord
from experiments.common.report_kit import Table, fixed, write
from experiments.common.score_figures import trade_off, unbeaten
from experiments.tuning.knobs.config import OUTER_LR, START, WISE, Knobs
from experiments.tuning.knobs.styles import ROLES
from experiments.tuning.knobs.tuning import PLAIN, SOURCES, best_round, of_source

TITLES = {
    "adamw": "AdamW",
    "ftp": "FTP",
    "ftp_exact": "FTP, exact",
    "random": "FTP, random search",
    "grid": "FTP, grid",
    "bilevel": "FTP, hypergradient",
    "wise_adamw": "WiSE-FT of AdamW",
    "wise_ftp": "WiSE-FT of FTP",
    "wise_bilevel": "WiSE-FT of FTP, hypergradient",
}
BASELINE = "ftp"  # what differences are taken from
CHOSEN_ON = {"other": "other style", "own": "own style", "both": "both styles"}
SEEN_AS = {"own": "own (ID)", "other": "other", "unseen": "unseen in fine-tuning"}
METRICS = {"accuracy": "Accuracy in %", "loss": "Cross-entropy"}
DIGITS = {"accuracy": 1, "loss": 3}  # cross-entropies differ in the third
DEFAULTS = {"radius_lr": 1e-2, "kappa": 1.0}
Pick = Callable[[dict], float | None]  # of a piece; None stands for what is not finite


def title(method: str) -> str:
    return TITLES.get(method, method)  # the anchor has its own name


def of_style(content: dict, style: int) -> list[dict]:
    return [result for result in content["results"].values() if result["style"] == style]


def estimated(content: dict, pick: Pick, minus: Pick | None = None) -> Estimate | None:
    """Mean over the styles of each seed, then over the seeds; None where a training diverged."""
    seeds = []
    for seed in content["config"]["seeds"]:
        results = [result for result in content["results"].values() if result["seed"] == seed]
        values = [(pick(result), minus(result) if minus else 0.0) for result in results]
        if any(None in pair for pair in values):
            return None
        seeds.append(fmean(own - other for own, other in values if own is not None and other is not None))
    return estimate(seeds)


def score(source: str, method: str, role: str, metric: str) -> Pick:
    """Of what was chosen on a source; of the anchor whatever the source."""
    number = list(METRICS).index(metric)
    if method == "anchor":
        return lambda result: result["anchor"][role][number]
    return lambda result: result["sources"][source]["tests"][method]["scores"][role][number]


def summarise(content: dict) -> dict:
    """Accuracies and losses by source, method and role."""
    return {
        source: {
            method: {
                metric: {role: estimated(content, score(source, method, role, metric)) for role in ROLES}
                for metric in METRICS
            }
            for method in ("anchor", *TITLES)
        }
        for source in SOURCES
    }


def scores_of(content: dict, source: str, metric: str) -> Table:
    """A row for each method; the right half is the difference to FTP's defaults."""
    rows = []
    for method, found in content["summary"][source].items():
        values = [fixed(found[metric][role], DIGITS[metric]) for role in ROLES]
        less = [""] * len(ROLES)
        if method not in ("anchor", BASELINE):
            pairs = [[score(source, name, role, metric) for name in (method, BASELINE)] for role in ROLES]
            less = [fixed(estimated(content, *pair), DIGITS[metric], signed=True) for pair in pairs]
        rows.append([title(method), *values, *less])
    return ["method", *SEEN_AS.values(), *(f"{role}, minus FTP's" for role in ROLES)], rows


def main_table(content: dict) -> Table:
    """Accuracies, chosen on the other style; of the knobs by hypergradient those of the other choices too."""
    header, rows = scores_of(content, "other", "accuracy")
    rows = [[row[0], CHOSEN_ON["other"] if row[0] != "anchor" else "", *row[1:]] for row in rows]
    for source in ("own", "both"):
        found = {row[0]: row for row in scores_of(content, source, "accuracy")[1]}
        rows.append([TITLES["bilevel"], CHOSEN_ON[source], *found[TITLES["bilevel"]][1:]])
    return [header[0], "chosen on", *header[1:]], rows


def rates_table(content: dict) -> Table:
    """Held-out loss by learning rate, means over everything."""
    lrs, rows = [str(lr) for lr in content["config"]["lrs"]], []
    for role in ("own", "other"):
        for method in PLAIN:
            row = [f"{TITLES[method]}, {SEEN_AS[role]}"]
            for lr in lrs:
                losses = [result["rates"][method]["losses"][lr][role] for result in content["results"].values()]
                row.append("diverged" if None in losses else f"{sum(losses) / len(losses):.3f}")
            rows.append(row)
    return ["held-out cross-entropy", *lrs], rows


def knobs_table(content: dict) -> Table:
    """What was found, seed by seed; a star marks an end of the grid beyond which a better one may lie."""
    config = content["config"]
    edges: dict[str, tuple[float, ...]] = {
        name: (min(config[name + "s"]), max(config[name + "s"])) for name in ("lr", "radius_lr")
    }
    edges["kappa"] = ()  # beyond the ends of its grid nothing is allowed
    rows = []
    for style in config["styles"]:
        for source in SOURCES:
            tests = [result["sources"][source]["tests"] for result in of_style(content, style)]
            cells = []
            for method in ("bilevel", "grid"):
                for knob, ends in edges.items():
                    values = [test[method][knob] for test in tests]
                    stars = ["*" if method == "grid" and value in ends else "" for value in values]
                    cells.append(", ".join(f"{x:.2g}{star}" for x, star in zip(values, stars, strict=True)))
            rows.append([content["data"]["styles"][style], CHOSEN_ON[source], *cells])
    names = [f"{way}: {knob}" for way in ("hypergradient", "grid") for knob in edges]
    return ["fine-tuned on", "chosen on", *names], rows


def searches_table(content: dict) -> Table:
    """What each search took, means over everything, and the held-out loss that it reached."""
    config, results = content["config"], list(content["results"].values())
    took = {
        **{name: (len(config["lrs"]), [result["rates"][name]["seconds"] for result in results]) for name in PLAIN},
        **{
            name: (len(search["losses"]), [result["searches"][name]["seconds"] for result in results])
            for name, search in results[0]["searches"].items()
        },
        "bilevel": (
            config["rounds"],
            [result["sources"][source]["bilevel"]["seconds"] for result in results for source in SOURCES],
        ),
    }
    rows = []
    for method, (trainings, seconds) in took.items():
        reached = [
            estimated(content, lambda result, s=source, m=method: result["sources"][s]["held_out"][m])
            for source in SOURCES
        ]
        cells = [fixed(value, 3) for value in reached]
        rows.append([TITLES[method], f"{trainings}", f"{fmean(seconds):.1f}", *cells])
    return ["search", "trainings", "seconds", *(f"held out: {CHOSEN_ON[source]}" for source in SOURCES)], rows


def slopes_table(content: dict) -> Table:
    """Medians of |d loss / d log lr|, |d loss / d log radius_lr|, |d loss / d logit kappa| on bilevel's way."""
    rows = []
    for source in SOURCES:
        free: list[list[float]] = [[], [], []]
        for result in content["results"].values():
            way = result["sources"][source]["bilevel"]
            for place, slope in zip(way["way"], way["slopes"], strict=False):
                scale = (place[0], place[1], place[2] * (1 - place[2]))
                for values, h, x in zip(free, slope, scale, strict=True):
                    values += [] if h is None else [abs(h * x)]
        rows.append([CHOSEN_ON[source], *(f"{median(values):.1g}" if values else "" for values in free)])
    return ["held-out loss of", "log lr", "log radius_lr", "logit kappa"], rows


def ways(file: Path, content: dict, knob: str) -> None:
    """A knob by round: a panel for each style, a curve for each source, by its short name: a panel is narrow."""
    by_style, place = {}, Knobs._fields.index(knob)
    for style in content["config"]["styles"]:
        named = {}
        for source in SOURCES:
            found = [result["sources"][source]["bilevel"]["way"] for result in of_style(content, style)]
            named[source] = mean_curve(range(len(found[0])), [[point[place] for point in way] for way in found])
        if knob in DEFAULTS:
            ends = [0, len(next(iter(named.values())).x) - 1]
            named["default"] = Curve(ends, [DEFAULTS[knob]] * 2)
        by_style[f"fine-tuned on {content['data']['styles'][style]}"] = named
    curves(file, by_style, "round", knob, log_y=knob != "kappa")


def surface(file: Path, content: dict, source: str) -> None:
    """Held-out loss over radius_lr and kappa at the best of the grid's learning rates, and bilevel's ways on it."""
    config = content["config"]
    shape = tuple(len(config[name]) for name in ("lrs", "radius_lrs", "kappas"))
    figure, all_axes = panels(len(config["styles"]), 3.3, sharey=True)
    colour = LOOKS["FTP, hypergradient"].colour
    for axes, style in zip(all_axes, config["styles"], strict=True):
        results = of_style(content, style)
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
            found = result["sources"][source]["bilevel"]
            way = np.array(found["way"])[:, 1:]
            axes.plot(*way.T, color=colour, linewidth=1.2, marker="o", markersize=3)
            star = {"color": colour, "marker": "*", "markersize": 14, "markeredgecolor": "white"}
            axes.plot(*way[best_round(found["values"])], linestyle="none", **star)
        axes.plot(*DEFAULTS.values(), color="white", marker="X", markersize=9, markeredgecolor="black", clip_on=False)
        axes.set_facecolor("#dddddd")  # where a way has left the grid
        axes.set_xscale("log")
        axes.set_xlabel("radius_lr")
        heading(axes, f"fine-tuned on {content['data']['styles'][style]}")
    figure.supylabel("kappa", fontsize=10)
    save(figure, file)


def setting(content: dict) -> str:
    config, names = content["config"], content["data"]["styles"]
    items, seeds = next(iter(content["results"].values()))["items"], config["seeds"]
    turns = "; ".join(f"{names[s]}, {names[(s + 1) % 3]}, {names[(s + 2) % 3]}" for s in config["styles"])
    mean = " ± standard error" if len(seeds) > 1 else ""
    return (
        "The last convolution and the head of EfficientNet-Lite0 are trained on frozen features: an anchor on "
        f"{config['pretrain_items']} emoji in all three styles, then, from it, {config['steps']} steps of "
        f"{config['batch_size']} on {items['train']} other emoji in one style, the own one. {items['held_out']} more "
        "emoji are held out, in the own style and in the other one; what is chosen is chosen on these, by "
        f"cross-entropy. The test has {items['test']} emoji, in the own style, the other and the unseen one; own, "
        f"other and unseen are in turn: {turns}. Mean{mean} over seeds {', '.join(map(str, seeds))} "
        "(split, anchor and orders), of each the mean over these turns. All fine-tunings are equally long and have a "
        "cosine schedule. Of AdamW and of FTP with its defaults (radius_lr 0.01, kappa 1, gradient `paper`; `exact` is "
        f"the other one) the learning rate is chosen of {len(config['lrs'])}; else it is searched for together with "
        "radius_lr and kappa. The random search draws "
        f"{config['tries']} points between the ends of the grid, evenly in the logarithms of both rates and in kappa. "
        f"Hypergradient: `hft.bilevel` by `hft.Unroll`, {config['rounds']} rounds of Adam (lr {OUTER_LR:g}, "
        f"betas 0.5 and 0.99, cosine) from lr {START.lr:g}, radius_lr {START.radius_lr:g}, kappa "
        f"{START.kappa:g}; the best of the points at which they begin is taken. WiSE-FT is the mean with the "
        f"anchor, whose share is {WISE:g}."
    )


def write_report(record: RunRecord) -> None:
    """report.md and its figures."""
    content, folder = record.content, record.folder
    content["summary"] = summarise(content)
    for knob in Knobs._fields:
        ways(folder / f"{knob}.png", content, knob)
    surface(folder / "surface.png", content, "other")
    found: dict[str, dict] = {title(method): own["accuracy"] for method, own in content["summary"]["other"].items()}
    found["anchor"] = found.pop("anchor")  # drawn last
    points = {
        name: (own["own"], own["unseen"]) for name, own in found.items() if own["own"] and own["unseen"]
    }  # what diverged has no place
    trade_off(folder / "trade-off.png", points, ("accuracy in the own style (%)", "accuracy in the unseen style (%)"))
    scores = [
        block
        for metric, unit in METRICS.items()
        for source in SOURCES
        for block in (
            f"{unit} on the test. Chosen on held-out emoji: {CHOSEN_ON[source]}.",
            scores_of(content, source, metric),
        )
    ]
    write(
        record,
        "FTP's knobs by hypergradient on another style",
        setting(content),
        *scores,
        f"![Accuracy in the own style against that in the unseen one, chosen on the other. {unbeaten(points)}]"
        "(trade-off.png)",
        "## What was found",
        "By seed; a star marks an end of the grid, beyond which a better one may lie:",
        knobs_table(content),
        "![radius_lr by round, by the style of the held-out emoji; the line is FTP's default](radius_lr.png)",
        "![kappa by round, by the style of the held-out emoji; the line is FTP's default](kappa.png)",
        "Adam divides a derivative by its usual size: a knob moves as far where it hardly matters as where it does "
        "(sizes: below).",
        "![Learning rate of the base by round, by the style of the held-out emoji: where the lines part, the choice "
        "depends on what is held out](lr.png)",
        "Held-out cross-entropy in the other style over radius_lr and kappa, at the best of the grid's learning rates, "
        "mean over seeds; lines: the ways of bilevel, with a star at the best point of each; cross: FTP's defaults. "
        "The learning rate of a way is its own.",
        "![Held-out loss over both knobs: dark is lower, and grey is beyond the grid](surface.png)",
        "Derivatives of the held-out loss on bilevel's way, medians of their sizes. kappa has one only where a radius "
        "was asked to shrink:",
        slopes_table(content),
        "Held-out cross-entropy by learning rate, mean over styles and seeds:",
        rates_table(content),
        "Trainings and seconds of one search, and the held-out cross-entropy of what it chose, in the order of batches "
        "in which all choices are made. The grid serves the three choices at once; a training of bilevel is "
        "differentiated too:",
        searches_table(content),
    )
