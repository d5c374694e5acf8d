"""Runs a study's command line as the program. Imports nothing that may be missing."""

import sys
from importlib import import_module


def start(module: str, extra: str) -> None:
    """Say which extra is missing, and stop quietly before a run has begun."""
    try:
        status = import_module(module).main()
    except ModuleNotFoundError as error:
        sys.exit(f"error: the package '{error.name}' is missing; install what this needs: pip install '.[{extra}]'")
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)
