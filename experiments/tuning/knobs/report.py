"""What a run says at its end: means over seeds, of each the mean over the styles, in tables and a figure."""

from collections.abc import Callable
from statistics import fmean, median

from experiments.common.estimate import Estimate, estimate
from experiments.common.record import RunRecord
from experiments.common.report_kit import Table, fixed, write
from experiments.common.score_figures import trade_off, unbeaten
from experiments.tuning.knobs.config import HIGHEST, LOWEST, OUTER_LR, START, WISE
from experiments.tuning.knobs.styles import ROLES
from experiments.tuning.knobs.tuning import PLAIN, SOURCES

TITLES = {
    "adamw": "AdamW",
    "ftp": "FTP",
    "ftp_exact": "FTP, exact",
    "random": "FTP, random search",
    "bilevel": "FTP, hypergradient",
    "wise_adamw": "WiSE-FT of AdamW",
    "wise_ftp": "WiSE-FT of FTP",
    "wise_bilevel": "WiSE-FT of FTP, hypergradient",
}
BASELINE = "ftp"  # what differences are taken from
CHOSEN_ON = {"other": "other style", "own": "own style"}
SEEN_AS = {"own": "own (ID)", "other": "other", "unseen": "unseen in fine-tuning"}
Pick = Callable[[dict], float | None]  # of a piece; None stands for what is not finite


def title(method: str) -> str:
    return TITLES.get(method, method)  # the anchor has its own name


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


def accuracy(source: str, method: str, role: str) -> Pick:
    """Of what was chosen on a source; of the anchor whatever the source."""
    if method == "anchor":
        return lambda result: result["anchor"][role][0]
    return lambda result: result["sources"][source]["tests"][method]["scores"][role][0]


def summarise(content: dict) -> dict:
    """Accuracies by source, method and role."""
    return {
        source: {
            method: {role: estimated(content, accuracy(source, method, role)) for role in ROLES}
            for method in ("anchor", *TITLES)
        }
        for source in SOURCES
    }


def scores_of(content: dict, source: str) -> Table:
    """A row for each method; the right half is the difference to FTP's defaults."""
    rows = []
    for method, found in content["summary"][source].items():
        values = [fixed(found[role]) for role in ROLES]
        less = [""] * len(ROLES)
        if method not in ("anchor", BASELINE):
            pairs = [[accuracy(source, name, role) for name in (method, BASELINE)] for role in ROLES]
            less = [fixed(estimated(content, *pair), signed=True) for pair in pairs]
        rows.append([title(method), *values, *less])
    return ["method", *SEEN_AS.values(), *(f"{role}, minus FTP's" for role in ROLES)], rows


def main_table(content: dict) -> Table:
    """Accuracies, chosen on the other style; of the knobs by hypergradient those chosen on the own one too."""
    header, rows = scores_of(content, "other")
    (own,) = (row for row in scores_of(content, "own")[1] if row[0] == TITLES["bilevel"])
    return header, [*rows, [f"{own[0]}, on the own", *own[1:]]]


def searches_table(content: dict) -> Table:
    """What each search took, means over everything, and the held-out loss that it reached."""
    config, results = content["config"], list(content["results"].values())
    took = {
        **{name: (len(config["lrs"]), [result["rates"][name]["seconds"] for result in results]) for name in PLAIN},
        "random": (config["tries"], [result["searches"]["random"]["seconds"] for result in results]),
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
        f"{config['tries']} points, lr from {LOWEST.lr:g} to {HIGHEST.lr:g}, radius_lr from {LOWEST.radius_lr:g} to "
        f"{HIGHEST.radius_lr:g}, both evenly in the logarithm, and kappa from 0 to 1. "
        f"Hypergradient: `hft.bilevel` by `hft.Unroll`, {config['rounds']} rounds of Adam (lr {OUTER_LR:g}, "
        f"betas 0.5 and 0.99, cosine) from lr {START.lr:g}, radius_lr {START.radius_lr:g}, kappa "
        f"{START.kappa:g}; the best of the points at which they begin is taken. WiSE-FT is the mean with the "
        f"anchor, whose share is {WISE:g}."
    )


def write_report(record: RunRecord) -> None:
    """report.md and its figure."""
    content = record.content
    content["summary"] = summarise(content)
    found = dict(content["summary"]["other"])
    found["anchor"] = found.pop("anchor")  # drawn last
    points = {
        title(method): (own["own"], own["unseen"]) for method, own in found.items() if own["own"] and own["unseen"]
    }  # what diverged has no place
    axes = ("accuracy in the own style (%)", "accuracy in the unseen style (%)")
    trade_off(record.folder / "trade-off.png", points, axes)
    scores = [
        block
        for source in SOURCES
        for block in (
            f"Accuracy in % on the test. Chosen on held-out emoji: {CHOSEN_ON[source]}.",
            scores_of(content, source),
        )
    ]
    write(
        record,
        "FTP's knobs by hypergradient on another style",
        setting(content),
        *scores,
        f"![Accuracy in the own style against that in the unseen one, chosen on the other. {unbeaten(points)}]"
        "(trade-off.png)",
        "Trainings and seconds of one search, and the held-out cross-entropy of what it chose, in the order of batches "
        "in which all choices are made. A training of bilevel is differentiated too:",
        searches_table(content),
        "Derivatives of the held-out loss on bilevel's way, medians of their sizes. kappa has one only where a radius "
        "was asked to shrink:",
        slopes_table(content),
    )
