"""What a run says at its end: accuracy of every method, against the linear head, and by steps."""

from collections.abc import Callable
from statistics import fmean

from experiments.common.estimate import Estimate, estimate
from experiments.common.figures import curves, mean_curve
from experiments.common.record import RunRecord
from experiments.common.report_kit import Table, fixed, over, paired, write
from experiments.meta.few_shot.adaptation import FIT_STEPS
from experiments.meta.few_shot.config import BLOCK, INPUTS, OUTER_LR, QUERIES, WAYS, WIDTH
from experiments.meta.few_shot.meta import PRETRAIN_BATCH
from experiments.meta.few_shot.methods import TITLES, marks

CURVES = ("maml-plain", "maml-ftp", "pretrained")


def summarise(content: dict) -> dict:
    """For each number of shots and method what the pieces have found, a list over the seeds."""
    config = content["config"]
    found: dict[str, dict[str, list[dict]]] = {}
    for shots in config["shots"]:
        methods = found.setdefault(str(shots), {})
        for seed in config["seeds"]:
            for name, piece in content["results"].items():
                if name.startswith(f"seed{seed}-{shots}shot-"):
                    for method, result in piece.items():
                        methods.setdefault(method, []).append(result)
    return found


def over_seeds(results: list[dict], pick: Callable[[dict], float]) -> Estimate | None:
    """None where a method has diverged for some seed, whatever its settings."""
    return estimate([pick(result) for result in results]) if all("accuracy" in r for r in results) else None


def minus(results: list[dict], others: list[dict]) -> Estimate | None:
    """Seed by seed, on the same episodes."""
    if not all("accuracy" in result for result in (*results, *others)):
        return None
    return paired((own["accuracy"] for own in results), (other["accuracy"] for other in others))


def table(content: dict) -> Table:
    """The main table."""
    found = content["summary"]
    header = ["method"]
    for shots in found:
        header += [f"{shots}-shot", "minus linear"]
    header += ["training (s)", "test (ms)"]
    rows = []
    for method, title in TITLES.items():
        row, seconds, milliseconds = [title], [], []
        for methods in found.values():
            results = methods[method]
            row.append(fixed(over_seeds(results, lambda result: result["accuracy"])))
            row.append("" if method == "linear" else fixed(minus(results, methods["linear"]), signed=True))
            seconds += [result["training_seconds"] for result in results if "accuracy" in result]
            milliseconds += [result["adaptation_ms"] for result in results if "accuracy" in result]
        rows.append([*row, *(f"{fmean(values):.2f}" if values else "" for values in (seconds, milliseconds))])
    return header, rows


def against(content: dict, pairs: list[tuple[str, str]]) -> Table:
    found = content["summary"]
    rows = [
        [
            f"{TITLES[own]} minus {TITLES[other]}",
            *(fixed(minus(methods[own], methods[other]), signed=True) for methods in found.values()),
        ]
        for own, other in pairs
    ]
    return ["difference", *(f"{shots}-shot" for shots in found)], rows


def choices(content: dict) -> Table:
    """What was chosen for each seed, and which meta-trainings diverged."""
    rows = []
    for method, title in TITLES.items():
        row = [title]
        for methods in content["summary"].values():
            texts = []
            for result in methods[method]:
                failed = ", ".join(result.get("diverged", []))
                texts.append(result.get("chosen", "none") + (f" (diverged: {failed})" if failed else ""))
            row.append("; ".join(texts))
        rows.append(row)
    return ["method", *(f"{shots}-shot" for shots in content["summary"])], rows


def setting(content: dict) -> str:
    config, data = content["config"], content["data"]
    parts = data["parts"]
    return (
        f"A class is a subgroup of emoji in Unicode's CLDR: {data['classes']} of them with {data['emoji']} emoji, one "
        f"of each group of near-duplicates, are split into {parts['train']} for meta-training, {parts['validation']} "
        f"for validation and {parts['test']} for the test, anew for each seed. An episode has {WAYS} classes; its "
        "support "
        f"is in one of {len(data['styles'])} styles and its {QUERIES} emoji of each class to predict are in "
        f"another. What EfficientNet-Lite0 passes to block {BLOCK} is centred for each style and reduced to "
        f"{INPUTS} principal components, all by meta-training pictures alone; the network on top has "
        f"{WIDTH} hidden units. Accuracy in %, {over(config['seeds'])}, "
        f"{config['episodes']} test episodes for each; chance is "
        f"{100 / WAYS:g} %. Every method has twelve settings, chosen for each seed on {config['validation']} episodes "
        "of the validation classes; the long adaptations have twelve more, on top of those of MAML. What is "
        f"meta-learned sees the same episodes: {config['meta_steps']} meta-steps of {config['tasks']} episodes with "
        f"{config['inner_steps']} inner steps each (implicit MAML: {2 * config['inner_steps']}), by Adam with rate "
        f"{OUTER_LR:g}. Ordinary pre-training learns all classes of meta-training at once, in "
        f"{2 * config['meta_steps']} steps of {PRETRAIN_BATCH} pictures by AdamW with that rate."
    )


def write_report(record: RunRecord) -> None:
    content = record.content
    found = content["summary"] = summarise(content)
    x = marks(content["config"]["inner_steps"])
    panels = {
        f"{shots}-shot": {
            TITLES[method]: mean_curve(x, [result["curve"] for result in methods[method]])
            for method in CURVES
            if all("curve" in result for result in methods[method])
        }
        for shots, methods in found.items()
    }
    named = sorted({x[0], *x[-4:]})
    curves(record.folder / "steps.png", panels, "steps of adaptation", "accuracy (%)", log_x=True, ticks=named)
    write(
        record,
        "Few shots across drawing styles",
        setting(content),
        table(content),
        "`minus linear` is the difference to the linear head on the same episodes. Seconds, of the processor, are "
        "those of one meta-training or pre-training, milliseconds (ms) those of one test episode, adapted and "
        "predicted in batches, both with the "
        f"settings that were chosen. A linear head makes {FIT_STEPS} steps. `long` is {x[-1]} steps from MAML's "
        "weights: with weight decay, or within FTP's radii of them, the head excepted.",
        against(content, [(m, "maml") for m in TITLES if m != "maml"] + [("maml-ftp", "maml-plain")]),
        "![Accuracy against steps of adaptation: where a line falls, more steps do harm](steps.png)",
        "Each with the settings that were chosen for it. The bands are standard errors over the seeds.",
        "What was chosen, seed by seed:",
        choices(content),
    )
