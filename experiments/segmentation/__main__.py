"""`python -m experiments.segmentation`; see --help."""

from experiments.common.program import start

start("experiments.segmentation.study", "studies")
