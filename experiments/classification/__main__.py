from experiments.common.program import start

start("experiments.classification.study", "demo")
