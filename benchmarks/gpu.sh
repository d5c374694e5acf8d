#!/usr/bin/env bash
# Everything that needs a GPU, in one command: the kernels against the reference on it, no host sync, launches, a CUDA graph,
# and the figures of a step, beside those that were predicted. Needs a Python whose torch sees the GPU, with this
# package's extras test, bench and demo.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
$PYTHON -c "import sys, torch; sys.exit(0 if torch.cuda.is_available() else 'torch sees no GPU here')"
$PYTHON -m pytest -q tests/gpu
$PYTHON -m benchmarks.bench_step --device cuda --rounds "${ROUNDS:-50}"
$PYTHON -m benchmarks.bench_triton --measured benchmarks/results/step_cuda.json
