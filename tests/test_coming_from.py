"""The pages for people who come from optax and TorchOpt name what these have, and what is here.

The pages are the source. optax is among the requirements of the benchmarks, not of the tests. ``make lint`` installs
it, which ``.ci/run`` calls before the tests; without it a part is skipped.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import reduce
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

import hyperopt_ftp as hft

DOCS = Path(__file__).parents[1] / "docs"

#: Modules with public names, "" for the package itself: a name that several have counts in the first. And whether their
#: ``__all__`` has all that is public.
LIBRARIES: dict[str, tuple[Sequence[str], bool]] = {
    "optax": (
        (
            *("losses", "contrib", "", "transforms", "schedules", "projections", "microbatching"),
            *("experimental.aggregating", "tree", "tree_utils", "second_order", "assignment", "perturbations"),
        ),
        False,
    ),
    "torchopt": (
        (
            *("pytree", "", "alias", "base", "clip", "combine", "diff.implicit", "diff.zero_order", "nn"),
            *("nn.stateless", "distributed", "distributed.autograd", "hook", "linalg", "linear_solve", "schedule"),
            *("transform", "update", "utils", "visual", "typing"),
        ),
        True,
    ),
}

#: Run by itself: an imported jax warns in every test that forks.
LIST = """
import inspect, json, pkgutil, sys, warnings
warnings.simplefilter("ignore")
package, modules, complete = json.loads(sys.argv[1])
names, seen = [], []
for module in modules:
    found = pkgutil.resolve_name(f"{package}.{module}".rstrip("."))
    listed = list(getattr(found, "__all__", ()))
    for name in dict.fromkeys(listed if listed and complete else [*listed, *dir(found)]):
        value = getattr(found, name)
        if name.startswith("_") or inspect.ismodule(value) or any(n == name and v is value for n, v in seen):
            continue
        seen.append((name, value))
        names.append(f"{module}.{name}".lstrip("."))
print(json.dumps(names))
"""


@pytest.fixture(scope="module", params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def page(library: str) -> str:
    return (DOCS / f"coming-from-{library}.md").read_text()


@pytest.fixture(scope="module")
def rows(page: str) -> list[tuple[list[str], str]]:
    """Names, or patterns of names, and what is here for them."""
    found = re.findall(r"^\| (`[^|]+`) \| (.*) \|$", page, flags=re.M)
    return [(re.findall(r"`([^`]+)`", names), here) for names, here in found]


@pytest.fixture(scope="module")
def entries(rows: Any) -> list[str]:
    return [name for names, _ in rows for name in names]


def entry(entries: list[str], name: str) -> str | None:
    """The one that is about a name: the longest that fits."""
    return max((pattern for pattern in entries if fnmatchcase(name, pattern)), key=len, default=None)


@pytest.fixture(scope="module")
def names(library: str, page: str) -> list[str]:
    """Of the installed library, unless that is older than the one whose names are on the page."""
    written = re.findall(r"^For users of \w+ ([\d.]+):", page, flags=re.M)[0]
    try:
        installed = version(library)
    except PackageNotFoundError:
        pytest.skip(f"{library} is not installed: make lint installs it, or pip install -e '.[bench]'")
    old, needed = ([int(x) for x in re.findall(r"\d+", release)[:3]] for release in (installed, written))
    if old < needed:
        pytest.skip(f"{library} {installed} is installed, the page has the names of {written}")
    what = json.dumps([library, *LIBRARIES[library]])
    done = subprocess.run([sys.executable, "-c", LIST, what], stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_every_public_name_of_the_library_has_one_row_and_no_row_is_about_another(entries: list[str], names: list[str]):
    assert len(names) > 100
    assert [name for name in names if entry(entries, name) is None] == []
    assert len(set(entries)) == len(entries)
    assert set(entries) - {entry(entries, name) for name in names} == set()


def test_what_a_page_points_to_is_here(page: str):
    there = re.findall(r"\bhft((?:\.\w+)+)", page)
    assert len(set(there)) > 20

    def missing(path: str) -> bool:
        end = object()
        return reduce(lambda at, name: getattr(at, name, end), path.split(".")[1:], hft) is end

    assert [path for path in dict.fromkeys(there) if missing(path)] == []


def test_what_has_the_same_name_here_is_pointed_to(rows: Any):
    """So that a row which says that there is none does not outlive the day when there is one."""
    last = [(name.rpartition(".")[2], here) for names, here in rows for name in names]
    assert {"adam", "sgd"} <= vars(hft).keys() & {name for name, _ in last}
    assert [name for name, here in last if hasattr(hft, name) and f"hft.{name}" not in here] == []
