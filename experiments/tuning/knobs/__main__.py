"""`python -m experiments.tuning.knobs`; see --help."""

from experiments.common.program import start

start("experiments.tuning.knobs.study", "studies")
