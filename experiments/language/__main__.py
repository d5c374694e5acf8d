from experiments.common.program import start

start("experiments.language.study", "language")
