"""The executions of the drop-in classes on a CPU, and the flags of a group that choose them."""

import pytest

FLAGS = {"single": {"foreach": False}, "foreach": {"foreach": True}, "fused_cpu": {"fused": True}}
every_execution = pytest.mark.parametrize("execution", FLAGS)
