"""The tables of the study."""

from experiments.common.estimate import Estimate, shown
from experiments.tuning.knobs.styles import ROLES
from experiments.tuning.knobs.summary import BASELINE
from experiments.tuning.knobs.tuning import SOURCES

Table = tuple[list[str], list[list[str]]]

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
CHOSEN_ON = {"other": "other style", "own": "own style", "both": "both styles"}
SEEN_AS = {"own": "own (ID)", "other": "other", "unseen": "unseen in fine-tuning"}


def main_table(content: dict) -> Table:
    """Accuracies, chosen on the other style; of the knobs by hypergradient those of the other choices too."""
    header, rows = scores_of(content, "other", "accuracy")
    rows = [[row[0], CHOSEN_ON["other"] if row[0] != "anchor" else "", *row[1:]] for row in rows]
    for source in ("own", "both"):
        found = {row[0]: row for row in scores_of(content, source, "accuracy")[1]}
        rows.append([TITLES["bilevel"], CHOSEN_ON[source], *found[TITLES["bilevel"]][1:]])
    return [header[0], "chosen on", *header[1:]], rows


def scores_of(content: dict, source: str, metric: str) -> Table:
    """A row for each method; the right half is the difference to FTP's defaults."""
    summary = content["summary"]
    header = ["method", *SEEN_AS.values(), *(f"{role}, minus FTP's" for role in ROLES)]
    none = [""] * len(ROLES)
    rows = [["anchor", *(_cell(summary["anchor"][metric][role]["value"], metric) for role in ROLES), *none]]
    methods = summary["methods"][source]
    for method in TITLES:
        found = methods[method][metric]
        values = [_cell(found[role]["value"], metric) for role in ROLES]
        less = [_cell(found[role]["difference"], metric, signed=True) for role in ROLES]
        rows.append([TITLES[method], *values, *(none if method == BASELINE else less)])
    return header, rows


def _cell(value: Estimate | None, metric: str, signed: bool = False) -> str:
    """Cross-entropies differ in the third digit."""
    if value is None:
        return "diverged"
    if metric == "accuracy":
        return shown(value, signed)
    mean, error = value
    number = f"{mean:+.3f}" if signed else f"{mean:.3f}"
    return number if error is None else f"{number} ± {error:.3f}"


def rates_table(content: dict) -> Table:
    """Held-out loss by learning rate, means over everything."""
    lrs = [str(lr) for lr in content["config"]["lrs"]]
    rows = []
    for role in ("own", "other"):
        for method in ("adamw", "ftp", "ftp_exact"):
            row = [f"{TITLES[method]}, {SEEN_AS[role]}"]
            for lr in lrs:
                losses = [result["rates"][method]["losses"][lr][role] for result in content["results"].values()]
                row.append("diverged" if None in losses else f"{sum(losses) / len(losses):.3f}")
            rows.append(row)
    return ["held-out cross-entropy", *lrs], rows


def knobs_table(content: dict, style_names: list[str]) -> Table:
    """What was found, seed by seed; a star marks an end of the grid beyond which a better one may lie."""
    edges = {name: _ends(content["config"][name + "s"]) for name in ("lr", "radius_lr")}
    edges["kappa"] = ()  # beyond the ends of its grid nothing is allowed
    rows = []
    for style in content["config"]["styles"]:
        found = [result for result in content["results"].values() if result["style"] == style]
        for source in SOURCES:
            tests = [result["sources"][source]["tests"] for result in found]
            cells = [
                ", ".join(_number(test[method][knob], edges[knob] if method == "grid" else ()) for test in tests)
                for method in ("bilevel", "grid")
                for knob in edges
            ]
            rows.append([style_names[style], CHOSEN_ON[source], *cells])
    names = [f"{way}: {knob}" for way in ("hypergradient", "grid") for knob in ("lr", "radius_lr", "kappa")]
    return ["fine-tuned on", "chosen on", *names], rows


def _ends(values: list[float]) -> tuple[float, ...]:
    return min(values), max(values)


def _number(value: float, edges: tuple[float, ...]) -> str:
    return f"{value:.2g}" + ("*" if value in edges else "")


def searches_table(content: dict) -> Table:
    """What each search took, and the held-out loss that it reached."""
    rows = [
        [
            TITLES[method],
            f"{found['trainings']}",
            f"{found['seconds']:.1f}",
            *(_cell(found["held_out"][source], "loss") for source in SOURCES),
        ]
        for method, found in content["summary"]["searches"].items()
    ]
    return ["search", "trainings", "seconds", *(f"held out: {CHOSEN_ON[source]}" for source in SOURCES)], rows


def slopes_table(content: dict) -> Table:
    rows = [
        [CHOSEN_ON[source], *("" if value is None else f"{value:.1g}" for value in values)]
        for source, values in content["summary"]["slopes"].items()
    ]
    return ["held-out loss of", "log lr", "log radius_lr", "logit kappa"], rows
