"""The study as its command runs it."""

from experiments.classification.emoji import PACKAGES
from experiments.common.study import Study
from experiments.meta.distillation.config import Config
from experiments.meta.distillation.data import Data, load
from experiments.meta.distillation.pieces import pieces
from experiments.meta.distillation.report import write_report
from experiments.meta.distillation.summary import table

STUDY = Study[Config, Data](
    name="distillation",
    prog="experiments.meta.distillation",
    about=(
        "Learn one or ten pictures a class so that a new network, trained on them alone, does well on real ones; "
        "compare with as many random, k-means and nearest-to-centroid pictures, and with the whole training set."
    ),
    config=Config,
    fast=Config(data=("digits",), per_class=(1,), seeds=(0,), rounds=100, whole_steps=(20, 60, 200)),
    load=lambda config, cache, progress: load(config.data, cache, progress),
    pieces=pieces,
    report=write_report,
    table=table,
    packages=("scikit-learn", *PACKAGES),
)
main = STUDY.main
