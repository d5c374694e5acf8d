"""The one exception that means: what was given cannot be used, and the message says why and what can."""

from importlib.util import find_spec
from pathlib import Path


class InputError(Exception):
    """Bad options or bad data. The command prints the message alone and exits with status 2."""


def folder_of(package: str, extra: str) -> Path:
    """Of a package whose files alone are read: it is not imported. Without it, the error says which extra has it."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"the package {package.replace('_', '-')} is missing: pip install 'hyperopt_ftp[{extra}]'")
    return Path(spec.submodule_search_locations[0])
