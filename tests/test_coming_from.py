"""The pages for people who come from optax and TorchOpt name what these have, and what is here.

optax is among the requirements of the benchmarks, not of the tests. ``make lint`` installs it, which ``.ci/run`` calls
before the tests; without it a part is skipped.
"""

from __future__ import annotations

import re
from functools import reduce
from importlib.metadata import PackageNotFoundError, version

import pytest

import hyperopt_ftp as hft

from . import coming_from
from .coming_from import LIBRARIES, Library


@pytest.fixture(scope="module", params=LIBRARIES, ids=lambda library: library.package)
def library(request: pytest.FixtureRequest) -> Library:
    return request.param


def numbers(release: str) -> list[int]:
    return [int(x) for x in re.findall(r"\d+", release)[:3]]


@pytest.fixture(scope="module")
def names(library: Library) -> list[str]:
    """Of the installed library, unless that is older than the one whose names are in the tables."""
    try:
        installed = version(library.package)
    except PackageNotFoundError:
        pytest.skip(f"{library.package} is not installed: make lint installs it, or pip install -e '.[bench]'")
    if numbers(installed) < numbers(library.version):
        pytest.skip(f"{library.package} {installed} is installed, the tables have the names of {library.version}")
    return coming_from.public(library)


def test_every_public_name_of_the_library_has_a_row(library: Library, names: list[str]):
    assert len(names) > 100
    assert [name for name in names if coming_from.entry(library, name) is None] == []


def test_no_row_is_about_a_name_that_the_library_does_not_have(library: Library, names: list[str]):
    about = {coming_from.entry(library, name) for name in names}
    entries = coming_from.entries(library)
    assert len(set(entries)) == len(entries)
    assert [entry for entry in entries if entry not in about] == []


def test_what_a_row_points_to_is_here(library: Library):
    there = re.findall(r"\bhft((?:\.\w+)+)", coming_from.document(library))
    assert len(set(there)) > 20

    def missing(path: str) -> bool:
        end = object()
        return reduce(lambda at, name: getattr(at, name, end), path.split(".")[1:], hft) is end

    assert [path for path in dict.fromkeys(there) if missing(path)] == []


def test_what_has_the_same_name_here_is_pointed_to(library: Library):
    """So that a row which says that there is none does not outlive the day when there is one."""
    rows = {
        name: here for rows in coming_from.tables(library).values() for names, here in rows.items() for name in names
    }
    last = {name: name.rpartition(".")[2] for name in rows}
    assert {"adam", "sgd"} <= vars(hft).keys() & set(last.values())
    assert [name for name in rows if hasattr(hft, last[name]) and f"hft.{last[name]}" not in rows[name]] == []


def test_the_page_is_what_the_tables_say(library: Library):
    assert library.page.read_text() == coming_from.document(library), "run python -m tests.coming_from"
