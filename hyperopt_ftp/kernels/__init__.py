"""Fast executions of the pure definitions: columns of tensors in (``layers``), changed in place.

A leaf: torch, and Numba (``cpu``) or Triton (``triton``) once a step needs them. Each execution has the same three
functions and is held to the pure definitions by the same tests. ``ops`` carries the fused ones through compiled graphs.
"""
