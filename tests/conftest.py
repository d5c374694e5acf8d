"""Hypothesis profiles, and the same seed before each test."""

import os
import tempfile
from importlib.util import find_spec

import pytest
import torch
from hypothesis import settings

if find_spec("triton"):  # whatever imports it first, torch.distributed for one, finds its interpreter on
    from .kernels import interpreter as interpreter

# Numba's cache does not see every change of our sources: each session compiles anew.
os.environ.setdefault("NUMBA_CACHE_DIR", tempfile.mkdtemp(prefix="numba"))

settings.register_profile("ci", derandomize=True, deadline=None, max_examples=25, database=None)
settings.register_profile("thorough", deadline=None, max_examples=500)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
