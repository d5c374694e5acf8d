"""Doctests import every module. This one imports triton as a compiler, and ``test_triton`` needs its interpreter."""

collect_ignore = ["compile_triton.py"]
