"""1,797 hand-written digits of 8 x 8 pixels, which scikit-learn ships."""

import torch
from sklearn.datasets import load_digits

from experiments.common.examples import Examples


def digits() -> Examples:
    """Pixels in [0, 1], float32 [1797, 64], and labels 0 to 9."""
    pictures, labels = load_digits(return_X_y=True)
    return Examples(torch.from_numpy(pictures).float() / 16, torch.from_numpy(labels).long())
