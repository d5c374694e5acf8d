"""`python -m experiments.classification`; see --help."""

import sys

try:
    from experiments.classification.cli import main

    status = main()
except ModuleNotFoundError as error:
    sys.exit(f"error: the package '{error.name}' is missing; install what the demo needs: pip install '.[demo]'")
except KeyboardInterrupt:  # before the run has begun
    status = 130
sys.exit(status)
