from experiments.common.program import start

start("experiments.meta.few_labels.study", "studies")
