"""One run of the study: make the anchor, fine-tune it with every method and seed, test, report."""

import json
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from torch import Tensor

from experiments.classification.anchor import anchor_file, make_anchor
from experiments.classification.config import Config
from experiments.classification.data import Pictures, limit_items, split
from experiments.classification.emoji import PACKAGES, emoji_pictures
from experiments.classification.folders import folder_pictures
from experiments.classification.methods import OPTIMIZERS
from experiments.classification.report import show, summarise, write_report
from experiments.classification.study import Study, steps_of
from experiments.common import checkpoint
from experiments.common.errors import InputError
from experiments.common.progress import Progress
from experiments.common.record import RunRecord, environment


def load_parts(config: Config, cache: Path, progress: Progress) -> tuple[dict[str, Pictures], int]:
    """The three parts of the split, and the number of the domain that is fine-tuned on."""
    if config.data_root is None:
        pictures = emoji_pictures(cache, progress)
    else:
        pictures = folder_pictures(Path(config.data_root), progress)
    names = pictures.domain_names
    if config.id_domain is not None and config.id_domain not in names:
        raise InputError(f"--id-domain {config.id_domain}: the domains are {', '.join(names)}")
    if config.limit is not None:
        pictures = limit_items(pictures, config.limit, config.split_seed)
    return split(pictures, config.split_seed), names.index(config.id_domain) if config.id_domain else 0


def fine_tune(study: Study, method: str, seed: int, start: dict[str, Tensor], folder: Path) -> dict:
    """One training and its test. The radii of FTP go into a file of their own, being many."""
    model = study.new_model()
    model.load_state_dict(start)
    optimizer = OPTIMIZERS[method](model, study.config)
    radii = getattr(optimizer, "radii", None)
    training = study.train(
        f"{method}, seed {seed}",
        model,
        optimizer,
        study.to_fine_tune,
        epochs=study.config.epochs,
        batch_size=study.config.batch_size,
        seed=seed,
        file=folder / "checkpoint.pt",
        identity={"method": method, "seed": seed, "config": study.config.as_dict()},
        observe=(lambda: list(radii().values())) if radii is not None else None,
    )
    if radii is not None:
        rows = [[float(f"{value:.5g}") for value in row] for row in training.observed]
        content = {"layers": list(radii()), "steps": training.observed_at, "radii": rows}
        checkpoint.write_text(folder / "radii" / f"{method}-seed{seed}.json", json.dumps(content) + "\n")
    return {
        "method": method,
        "seed": seed,
        **study.test(model),
        "diverged": training.diverged,
        "steps": training.step,
        "losses": training.losses,
        "seconds": round(training.seconds, 1),
    }


def run(
    config: Config, out: Path, cache: Path, console: Console, on_step: Callable[[str, int], None] | None = None
) -> None:
    """Do what is left of a run, then show its table. `on_step` lets a test interrupt at a given step."""
    record = RunRecord(out, "classification", config.as_dict())
    if not record.finished:
        with Progress(console) as progress:
            parts, id_domain = load_parts(config, cache, progress)
            record.check_data("-".join(part.fingerprint() for part in parts.values()))
            record.content["environment"] = environment(PACKAGES)
            study = Study(config, parts, id_domain, progress, on_step)
            trainings = {f"{method}-seed{seed}": (method, seed) for seed in config.seeds for method in config.methods}
            left = [name for name in trainings if name not in record.results]
            to_do = len(left) * steps_of(study.to_fine_tune, config.epochs, config.batch_size)
            if config.anchor == "styles" and not anchor_file(config, parts["pretrain"], cache).exists():
                to_do += steps_of(parts["pretrain"], config.anchor_epochs, config.anchor_batch_size)
            study.show_whole(to_do)
            out.mkdir(parents=True, exist_ok=True)  # before the work, should it not be allowed
            start, record.content["anchor"] = make_anchor(study, cache)
            record.save()  # before the first checkpoint: what lies in the folder is this run's
            for name in left:
                method, seed = trainings[name]
                record.results[name] = fine_tune(study, method, seed, start, out)
                record.save()
        record.content |= summarise(record.content, parts, id_domain)
        write_report(record, parts)
        record.content["status"] = "finished"
        record.save()
    show(record, console)
