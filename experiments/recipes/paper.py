"""The paper's benchmarks of classification (FTP, NeurIPS 2023, arXiv 2310.19182).

Read for it: README, code and lists of github.com/GT-RIPL/FTP; READMEs and code of its forerunner,
github.com/PotatoTian/TPGM; README, code and issues of github.com/mlfoundations/wise-ft. The texts of the papers were
not at hand: a value that stands only in them counts as not stated and is named in `chosen`. Benchmarks of whose
training no option was found in text (ViT on DomainNet, PASCAL-Context, Human-Parts) are left out.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Recipe:
    """What decides a result, apart from the data, the weights and the seed. `chosen` names the fields that no source
    states: their values are ours."""

    name: str
    title: str
    data: str  # a key of `study.DATA`
    model: str  # timm's name of the network
    classes: int
    optimizer: str  # "sgd", with Nesterov momentum 0.9, or "adamw"
    lr: float  # of ftp
    epochs: int
    batch_size: int
    plain_lr: float  # of finetune and linear
    source: str
    chosen: tuple[str, ...]
    weight_decay: float = 0.0
    plain_weight_decay: float = 0.0
    kappa: float = 1.0
    radius_lr: float = 1e-2
    warmup: int | None = None  # linear over so many steps, then the cosine falls at each; None: it falls by epoch
    clip: float | None = None  # largest norm of all gradients together; None: any
    mean: tuple[float, float, float] = (0.5964, 0.5712, 0.5336)
    std: tuple[float, float, float] = (0.3228, 0.3165, 0.3374)
    resize: int = 256  # shorter side of a test picture whose centre is cut out
    interpolation: str = "bilinear"
    image_size: int = 224
    fixed_size: bool = False  # the network is built for one image size, as transformers are
    projection: int = 0  # features of CLIP's last layer, which is kept and constrained; 0: no such layer
    zero_shot: bool = False  # the head starts as CLIP's zero-shot classifier and is constrained; else new and free
    percent: int = 100  # of DomainNet's training pictures

    def changed(self, **given: int) -> "Recipe":
        """With values of the command line, which count as chosen."""
        own = {name: value for name, value in given.items() if value != getattr(self, name)}
        return replace(self, **own, chosen=tuple(dict.fromkeys((*self.chosen, *own))))

    def factor(self, steps: int, step: int) -> float:
        """Of the learning rate at `step`, counted from 0, where an epoch has `steps`."""
        if self.warmup is None:
            return _cosine(step // steps, self.epochs)
        if step < self.warmup:
            return (step + 1) / self.warmup
        return _cosine(step - self.warmup, max(1, self.epochs * steps - self.warmup))


def _cosine(done: int, whole: int) -> float:
    return (1 + math.cos(math.pi * done / whole)) / 2


CLIP_RESNET50 = Recipe(
    name="domainnet-clip-resnet50",
    title="DomainNet-Real, CLIP ResNet50",
    data="domainnet",
    model="resnet50_clip",
    classes=345,
    optimizer="sgd",
    lr=1e-2,
    epochs=50,
    batch_size=256,  # 64 on each of 4 GPUs
    projection=1024,  # `attnpool.c_proj`, in their model the last layer before the head
    plain_lr=1e-3,  # TPGM's README, fine-tuning without it
    plain_weight_decay=5e-4,  # the authors' plain SGD; with FTP it is 0
    source="benchmark: paper table 2; values, mean and std of every network: GT-RIPL/FTP README, main_finetune.py and "
    "datasets; network and plain_lr: TPGM DomainNet_ResNet_Exp",
    chosen=("radius_lr",),  # as in this library
)
CLIP_RESNET50_ADAM = replace(
    CLIP_RESNET50,
    name="domainnet-clip-resnet50-adam",
    title="DomainNet-Real, CLIP ResNet50, Adam",
    optimizer="adamw",  # Adam, as weight decay is 0
    lr=1e-4,
    plain_lr=1e-4,
    plain_weight_decay=0.0,
    chosen=("radius_lr", "plain_lr", "plain_weight_decay"),
)
CLIP_RESNET50_10 = replace(
    CLIP_RESNET50,
    name="domainnet-clip-resnet50-10",
    title="DomainNet-Real with 10 % of the labels, CLIP ResNet50",
    percent=10,
    lr=1e-1,
    epochs=150,
    chosen=("radius_lr", "plain_lr"),
)
MOCO_RESNET50 = replace(
    CLIP_RESNET50,
    name="domainnet-moco-resnet50",
    title="DomainNet-Real, MoCoV3 ResNet50",
    model="resnet50",
    projection=0,
    plain_lr=5e-2,
)
MOCO_RESNET50_10 = replace(
    MOCO_RESNET50,
    name="domainnet-moco-resnet50-10",
    title="DomainNet-Real with 10 % of the labels, MoCoV3 ResNet50",
    percent=10,
    lr=1e-1,  # as CLIP's
    epochs=150,
    chosen=("radius_lr", "lr", "epochs", "plain_lr"),
)
IMAGENET = Recipe(
    name="imagenet-clip-vit",
    title="ImageNet, CLIP ViT-B/16",
    data="imagenet",
    model="vit_base_patch16_clip_quickgelu_224",  # OpenAI's weights were trained with QuickGELU
    classes=1000,
    optimizer="adamw",
    lr=3e-5,
    epochs=10,
    batch_size=512,  # TPGM's too: 32 on each of 16 GPUs
    plain_lr=3e-5,
    weight_decay=0.1,
    plain_weight_decay=0.1,  # the default of WiSE-FT's code is 0
    warmup=500,
    clip=1.0,
    mean=(0.485, 0.456, 0.406),  # timm's default
    std=(0.229, 0.224, 0.225),
    interpolation="bicubic",
    fixed_size=True,
    projection=512,
    zero_shot=True,
    source="benchmark: the paper's ImageNet; plain_lr, epochs, batch_size: WiSE-FT README (issue 6: also for "
    "ViT-B/16); AdamW, clip: its finetune.py; warmup: its issue 17; head, scaling, resize, interpolation and the 200 "
    "classes of -A and -R: TPGM ImageNet_ViT_Exp",
    chosen=("lr", "weight_decay", "plain_weight_decay", "kappa", "radius_lr"),
)
RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (CLIP_RESNET50, CLIP_RESNET50_ADAM, CLIP_RESNET50_10, MOCO_RESNET50, MOCO_RESNET50_10, IMAGENET)
}
