from experiments.common.program import start

start("experiments.hypergradients.language.study", "language")
