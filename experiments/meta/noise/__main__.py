from experiments.common.program import start

start("experiments.meta.noise.study", "studies")
