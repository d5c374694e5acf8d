"""Checks that the options of many studies share."""

import math
from dataclasses import fields
from typing import Any

from experiments.common.errors import InputError
from experiments.common.options import option


def check_fields(config: Any, **least: int) -> None:
    """Refuse numbers that cannot be sizes or rates, in any field of a config but its seeds, which `Study` checks.

    Whole numbers are at least 1, others above 0, or what `least` says; all are finite. Of several values there is at
    least one, and each once.
    """
    for name in (field.name for field in fields(config) if field.name != "seeds"):
        value = getattr(config, name)
        values = value if isinstance(value, tuple) else (value,)
        given = f"{option(name)} {' '.join(map(str, values))}"
        if not values or len(set(values)) < len(values):
            raise InputError(f"{given}: give at least one, each once")
        for number in values:
            if isinstance(number, int) or name in least:
                if not least.get(name, 1) <= number < math.inf:
                    raise InputError(f"{given}: must be at least {least.get(name, 1)}")
            elif isinstance(number, float) and not 0 < number < math.inf:
                raise InputError(f"{given}: must be a finite number above 0")


def check_names(name: str, given: tuple[str, ...], known: Any) -> None:
    """Refuse names that there are not."""
    if unknown := [x for x in given if x not in known]:
        raise InputError(f"{option(name)} {' '.join(unknown)}: there are {', '.join(known)}")
