"""Triton imported with its interpreter on: it decides when it is imported, and when a kernel is decorated."""

from __future__ import annotations

import os

import pytest

with pytest.MonkeyPatch.context() as patch:
    patch.setitem(os.environ, "TRITON_INTERPRET", "1")
    pytest.importorskip("triton")
    pytest.importorskip("triton.experimental.gluon")  # its first launch imports it
    from hyperopt_ftp.kernels import triton_kernels as triton_kernels
