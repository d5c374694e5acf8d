"""`python -m experiments.sensitivity`; see --help."""

from experiments.common.program import start

start("experiments.sensitivity.study", "demo")
