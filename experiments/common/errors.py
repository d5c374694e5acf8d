"""The one exception that means: what was given cannot be used, and the message says why and what can."""


class InputError(Exception):
    """Bad options or bad data. The command prints the message alone and exits with status 2."""
