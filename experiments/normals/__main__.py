"""`python -m experiments.normals`; see --help."""

from experiments.common.program import start

start("experiments.normals.study", "studies")
