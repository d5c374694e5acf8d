"""`python -m experiments.meta.distillation`; see --help."""

from experiments.common.program import start

start("experiments.meta.distillation.study", "studies")
