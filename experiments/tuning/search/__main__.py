"""`python -m experiments.tuning.search`; see --help."""

from experiments.common.program import start

start("experiments.tuning.search.study", "studies")
