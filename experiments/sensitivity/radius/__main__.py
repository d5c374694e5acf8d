from experiments.common.program import start

start("experiments.sensitivity.radius.study", "demo")
