"""What decides the result of one of the paper's benchmarks, apart from the data, the weights and the seed."""

from dataclasses import dataclass, replace

from experiments.common.errors import InputError

PERCENTS = (1, 5, 10, 20, 50, 100)  # DomainNet's lists


@dataclass(frozen=True)
class Recipe:
    """Its instances are in `paper.py`. `chosen` names the fields that no source states: their values are ours."""

    name: str
    title: str
    data: str  # a key of `benchmark.DATA`
    model: str  # timm's name of the network
    classes: int  # of normals: the three components
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
    warmup: int | None = None  # linear over so many steps, then the cosine falls at each; None: it falls by epoch
    clip: float | None = None  # largest norm of all gradients together; None: any
    drop_last: bool = False  # of an epoch's batches, if it is not full
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    resize: int | None = 256  # shorter side of a test picture whose centre is cut out; None: squeezed into a square
    interpolation: str = "bilinear"
    image_size: int = 224
    fixed_size: bool = False  # the network is built for one image size, as transformers are
    projection: int = 0  # features of CLIP's last layer, which is kept and constrained; 0: no such layer
    zero_shot: bool = (
        False  # the head starts as CLIP's zero-shot classifier and is constrained; else it is new and free
    )
    percent: int = 100  # of DomainNet's training pictures
    tasks: int = 1
    anchor_moves: bool = False  # to the weights at the end of the previous task

    def changed(self, **given: int) -> "Recipe":
        """With values of the command line. They count as chosen, and so does what goes with a share of the pictures."""
        own = {name: value for name, value in given.items() if value != getattr(self, name)}
        names = (*own, *(("lr", "plain_lr", "epochs") if "percent" in own else ()))
        return replace(self, **own, chosen=tuple(dict.fromkeys((*self.chosen, *names))))

    def check(self) -> None:
        """Refuse what cannot run, before any work starts."""
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be an integer of at least 1")
        if self.percent not in PERCENTS:
            raise InputError(f"--percent {self.percent}: there are lists for {', '.join(map(str, PERCENTS))}")
        if self.percent != 100 and self.data != "domainnet":
            raise InputError(f"--percent is for the recipes of DomainNet; {self.name} has all of its pictures")
        if self.classes % self.tasks:
            raise InputError(f"{self.classes} classes do not divide into {self.tasks} tasks of one size")
