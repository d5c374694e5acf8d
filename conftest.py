"""Doctests import every module: those of a kernel are left out where its compiler is not installed."""

from importlib.util import find_spec

_MODULES = {"triton": ["triton_kernels.py"], "numba": ["cpu_kernels.py"]}

collect_ignore = [f"hyperopt_ftp/kernels/{m}" for name, ms in _MODULES.items() if find_spec(name) is None for m in ms]
