"""Fast executions of the pure definitions: lists of tensors in, changed in place. A leaf: torch only.

Only ``torch_optim`` imports this package. Each function is held to the pure function that it executes by tests.
"""
