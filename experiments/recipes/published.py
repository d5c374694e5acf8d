"""Figures that others published for these benchmarks, to stand beside one's own. Copied digit by digit."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    source: str
    columns: tuple[str, ...]
    rows: Mapping[str, tuple[float, ...]]  # by method


DOMAINNET = ("ID: real", "sketch", "painting", "infograph", "clipart", "OOD mean")
DOMAINNET_README = "PotatoTian/TPGM, DomainNet_ResNet_Exp/README.md"

PUBLISHED: Mapping[str, Published] = {
    "domainnet-clip-resnet50": Published(
        DOMAINNET_README,
        DOMAINNET,
        {
            "fine-tuning": (79.43, 30.43, 41.24, 18.66, 42.36, 33.17),
            "TPGM": (82.41, 37.53, 45.71, 26.77, 46.07, 39.02),
        },
    ),
    "domainnet-moco-resnet50": Published(
        DOMAINNET_README,
        DOMAINNET,
        {
            "fine-tuning": (82.00, 31.92, 43.67, 19.66, 45.78, 35.26),
            "TPGM": (81.30, 35.68, 46.64, 20.03, 45.77, 37.03),
        },
    ),
    "imagenet-clip-vit": Published(
        "PotatoTian/TPGM, ImageNet_ViT_Exp/ImageNet.md; -A and -R among their 200 classes",
        ("ID: val", "imagenetv2", "imagenet-a", "imagenet-r", "imagenet-sketch"),
        {
            "zero-shot": (67.82, 61.19, 50.97, 75.73, 45.57),
            "fine-tuning": (84.27, 74.78, 45.54, 65.05, 48.28),
            "WiSE-FT, 0.5": (82.16, 73.66, 56.63, 78.25, 54.16),
            "TPGM": (83.80, 75.27, 55.91, 76.87, 54.50),
        },
    ),
}


def table(published: Published) -> tuple[list[str], list[list[str]]]:
    """Header and rows, as text."""
    rows = [[method, *(f"{value:.2f}" for value in values)] for method, values in published.rows.items()]
    return ["method", *published.columns], rows
