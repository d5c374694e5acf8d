from experiments.common.program import start

start("experiments.sensitivity.study", "demo")
