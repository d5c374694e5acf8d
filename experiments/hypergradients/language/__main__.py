"""`python -m experiments.hypergradients.language`; see --help."""

from experiments.common.program import start

start("experiments.hypergradients.language.study", "language")
