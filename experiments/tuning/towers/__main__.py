from experiments.common.program import start

start("experiments.tuning.towers.study", "studies")
