from experiments.common.program import start

start("experiments.studies.cli", "studies")
