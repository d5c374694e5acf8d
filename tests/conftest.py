"""Hypothesis profiles, and the same seed before each test."""

import atexit
import os
import shutil
import tempfile
from importlib.util import find_spec

import pytest
import torch
from hypothesis import settings

if find_spec("triton"):  # whatever imports it first, torch.distributed for one, finds its interpreter on
    from .kernels import interpreter as interpreter

# Numba's cache has no lock: sessions beside each other do not share one. A session's own workers do.
if "NUMBA_CACHE_DIR" not in os.environ:
    os.environ["NUMBA_CACHE_DIR"] = tempfile.mkdtemp(prefix="numba")
    atexit.register(shutil.rmtree, os.environ["NUMBA_CACHE_DIR"], ignore_errors=True)

pytest.register_assert_rewrite("tests.support")  # an assertion there says as much as one in a test

settings.register_profile("ci", derandomize=True, deadline=None, max_examples=25, database=None)
settings.register_profile("thorough", deadline=None, max_examples=500)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
