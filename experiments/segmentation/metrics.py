"""How well a network separates the classes."""

import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassJaccardIndex


@torch.no_grad()
def mean_iou(
    model: nn.Module, images: Tensor, masks: Tensor, *, classes: int, device: torch.device, batch_size: int = 50
) -> float:
    """Percentage: intersection over union of the pixels of all pictures together, averaged over the classes.

    Classes that neither the masks nor the network show do not count.
    """
    was_training = model.training
    model.eval()
    # not validated: that searches every batch for classes beyond the last
    metric = MulticlassJaccardIndex(classes, average="macro", validate_args=False).to(device)
    for some, truth in zip(images.split(batch_size), masks.split(batch_size), strict=True):
        metric.update(model(some.to(device)).argmax(dim=1), truth.to(device))
    model.train(was_training)
    return 100 * metric.compute().item()
