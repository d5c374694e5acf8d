"""`python -m experiments.tuning.knobs`: the study and its command."""

from experiments.classification.emoji import PACKAGES
from experiments.common.study import Study
from experiments.tuning.knobs.config import FAST, Config
from experiments.tuning.knobs.pieces import pieces
from experiments.tuning.knobs.report import write_report
from experiments.tuning.knobs.styles import load
from experiments.tuning.knobs.tables import main_table

STUDY = Study(
    name="knobs",
    prog="experiments.tuning.knobs",
    about=(
        "Tune FTP's radius_lr and kappa by hypergradients on held-out pictures of a style that is not fine-tuned on; "
        "compare with its defaults, with searches, and with AdamW, also in a third style. Stop it at any time; the "
        "same command goes on from there."
    ),
    config=Config,
    fast=FAST,
    load=load,
    pieces=pieces,
    report=write_report,
    table=main_table,
    packages=PACKAGES,
)
main = STUDY.main
