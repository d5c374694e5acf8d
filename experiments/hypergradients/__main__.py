"""`python -m experiments.hypergradients`; see --help."""

from experiments.common.program import start

start("experiments.hypergradients.study", "studies")
