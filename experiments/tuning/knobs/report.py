"""What a run says at its end."""

from experiments.common import checkpoint
from experiments.common.record import RunRecord
from experiments.common.score_figures import unbeaten
from experiments.common.tables import markdown, provenance
from experiments.tuning.knobs import plots
from experiments.tuning.knobs.summary import summarise
from experiments.tuning.knobs.tables import (
    CHOSEN_ON,
    knobs_table,
    rates_table,
    scores_of,
    searches_table,
    slopes_table,
)
from experiments.tuning.knobs.tuning import SOURCES


def setting(content: dict) -> str:
    config, data = content["config"], content["data"]
    items = next(iter(content["results"].values()))["items"]
    names, seeds = data["styles"], config["seeds"]
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
        f"Hypergradient: `hft.bilevel` by `hft.Unroll`, {config['rounds']} rounds of Adam (lr {config['outer_lr']:g}, "
        f"betas 0.5 and 0.99, cosine) from lr {config['lr']:g}, radius_lr {config['radius_lr']:g}, kappa "
        f"{config['kappa']:g}; the best of the points at which they begin is taken. WiSE-FT is the mean with the "
        f"anchor, whose share is {config['wise']:g}."
    )


def write_report(record: RunRecord) -> None:
    """report.md and its figures."""
    content, folder = record.content, record.folder
    content["summary"] = summarise(content)
    names = content["data"]["styles"]
    for knob in ("radius_lr", "kappa", "lr"):
        plots.ways(folder / f"{knob}.png", content, names, knob)
    plots.surface(folder / "surface.png", content, names, "other")
    points = plots.kept_and_learned(folder / "trade-off.png", content, "other")
    lines = ["# FTP's knobs by hypergradient on another style", "", setting(content), ""]
    for metric, unit in (("accuracy", "Accuracy in %"), ("loss", "Cross-entropy")):
        for source in SOURCES:
            lines += [f"{unit} on the test. Chosen on held-out emoji: {CHOSEN_ON[source]}.", ""]
            lines += [*markdown(*scores_of(content, source, metric)), ""]
    lines += [
        f"![Accuracy in the own style against that in the unseen one, chosen on the other. {unbeaten(points)}]"
        "(trade-off.png)",
        "",
        "## What was found",
        "",
        "By seed; a star marks an end of the grid, beyond which a better one may lie:",
        "",
        *markdown(*knobs_table(content, names)),
        "",
        "![radius_lr by round, by the style of the held-out emoji; the line is FTP's default](radius_lr.png)",
        "",
        "![kappa by round, by the style of the held-out emoji; the line is FTP's default](kappa.png)",
        "",
        "Adam divides a derivative by its usual size: a knob moves as far where it hardly matters as where it does "
        "(sizes: below).",
        "",
        "![Learning rate of the base by round, by the style of the held-out emoji: where the lines part, the choice "
        "depends on what is held out](lr.png)",
        "",
        "Held-out cross-entropy in the other style over radius_lr and kappa, at the best of the grid's learning rates, "
        "mean over seeds; lines: the ways of bilevel, with a star at the best point of each; cross: FTP's defaults. "
        "The learning rate of a way is its own.",
        "",
        "![Held-out loss over both knobs: dark is lower, and grey is beyond the grid](surface.png)",
        "",
        "Derivatives of the held-out loss on bilevel's way, medians of their sizes. kappa has one only where a radius "
        "was asked to shrink:",
        "",
        *markdown(*slopes_table(content)),
        "",
        "Held-out cross-entropy by learning rate, mean over styles and seeds:",
        "",
        *markdown(*rates_table(content)),
        "",
        "Trainings and seconds of one search, and the held-out cross-entropy of what it chose, in the order of batches "
        "in which all choices are made. The grid serves the three choices at once; a training of bilevel is "
        "differentiated too:",
        "",
        *markdown(*searches_table(content)),
        "",
        *provenance(content),
    ]
    checkpoint.write_text(folder / "report.md", "\n".join(lines) + "\n")
