from experiments.common.program import start

start("experiments.tuning.knobs.study", "studies")
