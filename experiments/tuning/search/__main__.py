from experiments.common.program import start

start("experiments.tuning.search.study", "studies")
