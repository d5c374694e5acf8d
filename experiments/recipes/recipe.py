"""What decides the result of one of the paper's benchmarks, apart from the data, the weights and the seed."""

from dataclasses import dataclass

from experiments.common.errors import InputError


@dataclass(frozen=True)
class Recipe:
    """Its instances are in `paper.py`. `chosen` names the fields that no source states: their values are ours."""

    name: str
    title: str
    data: str  # a key of `benchmark.DATA`
    model: str  # timm's name of the network
    classes: int
    optimizer: str  # "sgd", with Nesterov momentum, or "adamw"
    lr: float  # of ftp
    epochs: int  # per task, where there are several
    batch_size: int
    plain_lr: float  # of finetune and linear
    source: str
    chosen: tuple[str, ...]
    weight_decay: float = 0.0
    plain_weight_decay: float = 0.0
    momentum: float = 0.9  # of sgd
    kappa: float = 1.0
    radius_lr: float = 1e-2
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    resize: int = 256  # shorter side of a test picture before its centre is cut out
    image_size: int = 224
    fixed_size: bool = False  # the network is built for one image size, as transformers are
    share: float = 1.0  # of the training pictures whose labels are used
    tasks: int = 1
    anchor_moves: bool = False  # to the weights at the end of the previous task
    split_seed: int = 0  # of whatever is drawn among pictures or classes

    def check(self) -> None:
        """Refuse what cannot run, before any work starts."""
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be an integer of at least 1")
        if self.classes % self.tasks:
            raise InputError(f"{self.classes} classes do not divide into {self.tasks} tasks of one size")
