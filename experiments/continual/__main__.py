"""`python -m experiments.continual`; see --help."""

from experiments.common.program import start

start("experiments.continual.study", "demo")
