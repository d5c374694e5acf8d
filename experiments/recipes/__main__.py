from experiments.common.program import start

start("experiments.recipes.study", "recipes")
