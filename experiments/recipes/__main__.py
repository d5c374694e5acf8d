"""`python -m experiments.recipes`; see --help."""

from experiments.common.program import start

start("experiments.recipes.study", "recipes")
