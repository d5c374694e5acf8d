from experiments.common.program import start

start("experiments.hypergradients.study", "scenes,language")
