"""`python -m experiments.language`; see --help."""

from experiments.common.program import start

start("experiments.language.study", "language")
