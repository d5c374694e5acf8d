"""`python -m experiments.meta.learned_optimizer`; see --help."""

from experiments.common.program import start

start("experiments.meta.learned_optimizer.study", "studies")
