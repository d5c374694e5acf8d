import pytest
import torch


@pytest.fixture
def one_thread():
    """For small convolutions in float64, which wait for threads more than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
