"""FTP with its default arguments against every family of methods, over all studies that compare methods."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from experiments.common.estimate import Estimate, shown
from experiments.common.methods import title
from experiments.common.tables import ANCHOR, markdown
from experiments.studies.jobs import Job
from experiments.studies.publish import finished

DEFAULT = "ftp"
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "AdamW": ("linear", "adamw", "adamw_decay", "mixout", "hypergradient"),
    "a pull toward the anchor": ("l2sp", "l2sp_decoupled", "cautious", "spd", "maps", "digrap"),
    "other radii": ("ftp_exact", "ftp_kappa0", "ftp_exact_kappa0", "tpgm", "mars_sp"),
    "mixed afterwards": ("wise", "wise_ftp", "lines", "model_stock", "learned_wise"),
    "adapters": ("lora", "lora_spd"),
}
Scores = dict[str, dict[str, Estimate]]  # by method, and by "id" and "ood"
SPREAD = 2  # standard errors of a difference, within which two means count as equal


def scores_by_task(jobs: Sequence[Job], folder: Path) -> dict[str, Scores]:
    """Of every task, named by its studies. Studies that differ in nothing but their methods are one task."""
    tasks: dict[str, tuple[list[str], Scores]] = {}
    for job in jobs:
        content = finished(folder / job.name)
        methods = {} if content is None else content.get("summary", {}).get("methods", {})
        if content is None or not {DEFAULT, "adamw", "wise"} <= methods.keys():
            continue
        same = json.dumps({key: value for key, value in content["config"].items() if key != "methods"}, sort_keys=True)
        names, scores = tasks.setdefault(content["experiment"] + same, ([], {}))
        names.append(job.name)
        for method, row in methods.items():
            scores.setdefault(method, {which: tuple(row["columns"][which]) for which in ("id", "ood")})
    return {" and ".join(names): scores for names, scores in tasks.values()}


def _best(scores: Scores, which: str) -> Estimate:
    """Of all that was fine-tuned."""
    return max((row[which] for method, row in scores.items() if method != ANCHOR), key=lambda value: value[0])


def equals_best(scores: Scores, method: str, which: str) -> bool:
    """Whether a mean lies within the error of the best one."""
    own, best = scores[method][which], _best(scores, which)
    return best[0] - own[0] <= SPREAD * math.hypot(own[1] or 0.0, best[1] or 0.0)


def shortfall(scores: Scores, method: str, which: str) -> float:
    """Points to the best."""
    return _best(scores, which)[0] - scores[method][which][0]


def best_of(scores: Scores, family: Sequence[str]) -> str | None:
    """The one with the highest sum of both scores, on the tests themselves."""
    known = [method for method in family if method in scores]
    return max(known, key=lambda method: sum(scores[method][which][0] for which in ("id", "ood")), default=None)


def _cell(scores: Scores, method: str) -> str:
    if method not in scores:
        return ""
    return f"{shown(scores[method]['id'])} / {shown(scores[method]['ood'])}"


def by_family(tasks: Mapping[str, Scores]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for task, scores in tasks.items():
        row = [task, _cell(scores, ANCHOR), _cell(scores, DEFAULT)]
        for family in FAMILIES.values():
            best = best_of(scores, family)
            row.append("" if best is None else f"{title(best)} {_cell(scores, best)}")
        rows.append(row)
    return ["study", title(ANCHOR), f"{title(DEFAULT)}, default", *FAMILIES], rows


def by_method(tasks: Mapping[str, Scores]) -> tuple[list[str], list[list[str]]]:
    """Those of more than one task, the smallest mean shortfall first."""
    found = []
    for method in dict.fromkeys(method for scores in tasks.values() for method in scores if method != ANCHOR):
        known = [scores for scores in tasks.values() if method in scores]
        if len(known) < 2:
            continue
        best = {which: [equals_best(scores, method, which) for scores in known] for which in ("id", "ood")}
        lost = {which: fmean(shortfall(scores, method, which) for scores in known) for which in ("id", "ood")}
        both = sum(a and b for a, b in zip(best["id"], best["ood"], strict=True))
        counts = (sum(best["id"]), sum(best["ood"]), both)
        row = [title(method), *(f"{count} of {len(known)}" for count in counts), *(f"{x:.1f}" for x in lost.values())]
        found.append((sum(lost.values()), row))
    header = ["method", "best in ID", "best in OOD", "best in both", "short of it, ID", "short of it, OOD"]
    return header, [row for _, row in sorted(found, key=lambda pair: pair[0])]


def across(jobs: Sequence[Job], folder: Path) -> str:
    """The page, from the numbers that lie in the folder."""
    tasks = scores_by_task(jobs, folder)
    lines = [
        "# Across the studies",
        "",
        "Is there a default that needs no tuning? Every study that compares ways of fine-tuning from one anchor, "
        "scores in %: in distribution (ID) / out of it (OOD), mean ± standard error over seeds. Every method had its "
        "learning rate, and its strength where it has one, chosen on held-out examples in distribution; FTP's own "
        "arguments are the defaults. For each family the member with the highest ID + OOD **on these tests** is shown: "
        "a choice in hindsight, which favours the families over FTP.",
        "",
        *markdown(*by_family(tasks)),
        "",
        f"The same by method: on how many tasks its mean lies within {SPREAD} standard errors (of the difference) of "
        "the best of all methods there, and how many points it is short of the best on average. Only methods of two "
        "or more tasks, and each over its own tasks: numbers compare where those are the same.",
        "",
        *markdown(*by_method(tasks)),
    ]
    return "\n".join(lines) + "\n"
