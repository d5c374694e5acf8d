from experiments.common.program import start

start("experiments.sensitivity.free.study", "demo")
