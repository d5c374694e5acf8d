from experiments.common.program import start

start("experiments.meta.few_shot.study", "studies")
