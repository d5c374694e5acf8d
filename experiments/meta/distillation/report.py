"""report.md and its figures, from the record alone."""

from experiments.common import checkpoint
from experiments.common.estimate import Estimate, estimate
from experiments.common.figures import Curve, curves
from experiments.common.record import RunRecord
from experiments.common.tables import markdown, provenance
from experiments.meta.distillation.pieces import LONGER
from experiments.meta.distillation.sheets import few_a_class, one_a_class
from experiments.meta.distillation.summary import (
    KINDS,
    TITLES,
    cases,
    choices,
    gains,
    networks,
    of_seeds,
    scores,
    summarise,
    table,
    whole_of,
)


def setting(content: dict) -> str:
    config, about = content["config"], content["data"]
    sets = []
    for name in config["data"]:
        channels, height, width = about[name]["shape"]
        parts = ", ".join(f"{about[name][part]} {part}" for part in ("train", "validation", "test"))
        sets.append(
            f"{name} ({len(about[name]['classes'])} classes, {height} x {width}{' in colour' * (channels == 3)}; "
            f"{parts})"
        )
    own, other = networks(config)
    by_concept = (
        "Emoji are split by concept, so that near-duplicates share a part; how many there are differs a little from "
        "seed to seed. " * ("emoji" in config["data"])
    )
    seeds = ", ".join(map(str, config["seeds"]))
    return (
        f"Data: {' and '.join(sets)}. {by_concept}Networks with "
        f"new initial weights are trained from scratch on a few pictures a class, full batch, by SGD with momentum "
        f"0.9, without augmentation. Distilled pictures start from {config['start']} pictures, stay in [0, 1] and are "
        f"rounded to 8 bits before they are used; {config['rounds']} outer steps of Adam move them and the learning "
        f"rate by the hypergradient through {config['steps']} steps of {config['inits']} new networks (`{own}`), whose "
        f"loss is that of {config['outer_batch']} training pictures; the round is the best on validation "
        f"pictures of the first and of every {config['track']}th. With `{own}` they are tested at their learned rate "
        f"after {config['steps']} steps. "
        f"All else, and distilled pictures with `{other}`, is trained with the learning rate "
        f"({', '.join(f'{lr:g}' for lr in config['lrs'])}) and the number of steps "
        f"({', '.join(map(str, config['few_steps']))}; all pictures, in batches of {config['whole_batch']}: "
        f"{', '.join(map(str, config['whole_steps']))}) that are best on validation pictures. Accuracy in % is the "
        f"mean over the classes, on test pictures, of {config['test_inits']} new networks; mean ± standard error over "
        f"seeds ({seeds}): each has its own split, initial weights and random pictures."
    )


def paths(content: dict) -> dict[str, dict[str, Curve]]:
    """Test accuracy while pictures are distilled, beside what other pictures end at."""
    config = content["config"]
    own, panels = config["network"], {}
    for data, count in cases(config):
        found = of_seeds(content, data, count, "distilled")
        rounds = found[0]["rounds"]
        by_round = [estimate(list(values)) for values in zip(*(result["test"] for result in found), strict=True)]
        named = {
            TITLES[kind]: _level(rounds, estimate(scores(of_seeds(content, data, count, kind), own)))
            for kind in ("random", "centroid")
        }
        named[TITLES["distilled"]] = _curve(rounds, by_round)
        named["all"] = _level(rounds, estimate(scores(whole_of(content, data), own)))
        panels[f"{data}, {count} a class"] = named
    return panels


def _curve(x: list[int], values: list[Estimate]) -> Curve:
    errors = [error or 0.0 for _, error in values]
    return Curve(x, [mean for mean, _ in values], None if values[0][1] is None else errors)


def _level(rounds: list[int], value: Estimate) -> Curve:
    return _curve([rounds[0], rounds[-1]], [value, value])


def write_report(record: RunRecord) -> None:
    content, folder = record.content, record.folder
    config, about = content["config"], content["data"]
    content["summary"] = summarise(content)
    curves(folder / "rounds.png", paths(content), "outer step", "test accuracy (%)")
    figures = []
    for data, count in cases(config):
        name = f"{data}-{count}.png"
        sheets = {TITLES[kind]: of_seeds(content, data, count, kind)[0]["png"] for kind in KINDS}
        draw = one_a_class if count == 1 else few_a_class
        draw(folder / name, sheets, about[data]["classes"])
        source = " Drawn from Twemoji, copyright Twitter, Inc. and other contributors, CC-BY 4.0." * (data == "emoji")
        figures += [f"![{data}, {count} a class]({name})", ""]
        figures += [f"*{data}, {count} a class, seed {config['seeds'][0]}.{source}*", ""]
    lines = [
        "# Distilled pictures",
        "",
        setting(content),
        "",
        *markdown(*table(content)),
        "",
        "`k-means`: the centroids of each class alone; `nearest`: the real picture nearest to each of them. "
        f"`{LONGER * config['steps']} steps`: distilled pictures at their learned rate, for {LONGER} times as many "
        "steps as were differentiated through. `all`: the training part, in batches with each class equally often.",
        "",
        *figures,
        "Differences in percentage points, paired by seed, and what distillation took:",
        "",
        *markdown(*gains(content)),
        "",
        "![Test accuracy over the outer steps: above a level line, distilled pictures teach more than those of its "
        "name](rounds.png)",
        "",
        f"*`{config['network']}`, {config['steps']} steps at the rate of that outer step, {config['test_inits']} new "
        "networks a seed; the bands are standard errors over seeds. Nothing is chosen by this curve.*",
        "",
        "Learning rate and steps that were chosen:",
        "",
        *markdown(*choices(content)),
        "",
        *provenance(content),
    ]
    checkpoint.write_text(folder / "report.md", "\n".join(lines) + "\n")
