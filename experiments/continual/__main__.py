from experiments.common.program import start

start("experiments.continual.study", "language")
