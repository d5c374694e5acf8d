"""Optimizers as pure differentiable functions, hyper-optimizers that tune them, and Fast Trainable Projection."""

from .ftp import ftp as ftp
from .hyper import Forward as Forward
from .hyper import Implicit as Implicit
from .hyper import OneStep as OneStep
from .hyper import Unroll as Unroll
from .hyper import bilevel as bilevel
from .hyper import hyper as hyper
from .hyper import hypergradient as hypergradient
from .hyper import tpgm as tpgm
from .hyper import tpgm_radius as tpgm_radius
from .optimizers import adagrad as adagrad
from .optimizers import adam as adam
from .optimizers import adamw as adamw
from .optimizers import anneal as anneal
from .optimizers import clipped as clipped
from .optimizers import lion as lion
from .optimizers import projected as projected
from .optimizers import rmsprop as rmsprop
from .optimizers import scheduled as scheduled
from .optimizers import sgd as sgd
from .torch_optim import FTP as FTP
from .torch_optim import FTPSGD as FTPSGD
from .torch_optim import FTPAdamW as FTPAdamW
from .torchopt_bridge import from_torchopt as from_torchopt
from .torchopt_bridge import to_torchopt as to_torchopt
from .types import Optimizer as Optimizer

__version__ = "0.1.0"
