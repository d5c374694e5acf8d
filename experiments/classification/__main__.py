"""`python -m experiments.classification`; see --help."""

from experiments.common.program import start

start("experiments.classification.study", "demo")
