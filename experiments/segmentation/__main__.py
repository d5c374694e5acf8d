from experiments.common.program import start

start("experiments.segmentation.study", "scenes")
