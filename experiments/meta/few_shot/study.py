"""Few-shot learning across drawing styles: what meta-training brings beyond a linear head on frozen features."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial

from experiments.classification.emoji import PACKAGES
from experiments.common.study import Study
from experiments.meta.few_shot.config import Config
from experiments.meta.few_shot.data import Data, load, world
from experiments.meta.few_shot.methods import META_LEARNERS, frozen, meta_learned, pretrained
from experiments.meta.few_shot.report import table, write_report


def pieces(config: Config, data: Data) -> dict[str, Callable[[], dict]]:
    """One for each seed, number of shots and family of methods."""
    world_of = lru_cache(maxsize=1)(partial(world, data, config))
    families = {"frozen": frozen, "pretrained": pretrained, **{x: partial(meta_learned, x) for x in META_LEARNERS}}
    found: dict[str, Callable[[], dict]] = {}
    for seed in config.seeds:
        for shots in config.shots:
            for name, work in families.items():
                piece = f"seed{seed}-{shots}shot-{name}"
                found[piece] = lambda s=seed, k=shots, w=work: w(replace(world_of(s), shots=k))
    return found


STUDY = Study(
    name="few-shot",
    prog="experiments.meta.few_shot",
    about="Few-shot learning across drawing styles: MAML and its kin, FTP, and strong simple baselines. Stop it at any "
    "time; the same command goes on from there. The first run draws the emoji and their features, which takes a "
    "minute and is kept.",
    config=Config,
    fast=Config(seeds=(0,), episodes=120, validation=60, meta_steps=25),
    load=load,
    pieces=pieces,
    report=write_report,
    table=table,
    packages=PACKAGES,
)
main = STUDY.main
