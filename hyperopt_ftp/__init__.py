"""Optimizers as pure differentiable functions, hyper-optimizers that tune them, and Fast Trainable Projection."""

from .anchored import cautious_decay as cautious_decay
from .anchored import digrap as digrap
from .anchored import directed as directed
from .anchored import ftp as ftp
from .anchored import l2sp as l2sp
from .anchored import projected as projected
from .anchored import spd as spd
from .hyper import Forward as Forward
from .hyper import Implicit as Implicit
from .hyper import OneStep as OneStep
from .hyper import Unroll as Unroll
from .hyper import ZeroOrder as ZeroOrder
from .hyper import bilevel as bilevel
from .hyper import hyper as hyper
from .hyper import hypergradient as hypergradient
from .hyper import tpgm as tpgm
from .hyper import tpgm_radius as tpgm_radius
from .hyper import train as train
from .optimizers import adagrad as adagrad
from .optimizers import adam as adam
from .optimizers import adamw as adamw
from .optimizers import anneal as anneal
from .optimizers import clipped as clipped
from .optimizers import damped as damped
from .optimizers import lion as lion
from .optimizers import rmsprop as rmsprop
from .optimizers import scheduled as scheduled
from .optimizers import sgd as sgd
from .torch_optim import FTP as FTP
from .torch_optim import FTPSGD as FTPSGD
from .torch_optim import L2SP as L2SP
from .torch_optim import MARSSP as MARSSP
from .torch_optim import SPD as SPD
from .torch_optim import CautiousDecay as CautiousDecay
from .torch_optim import DiGraP as DiGraP
from .torch_optim import FTPAdamW as FTPAdamW
from .torch_optim import HypergradientDescent as HypergradientDescent
from .torch_optim import measure as measure
from .torch_optim import watch as watch
from .torchopt_bridge import from_torchopt as from_torchopt
from .torchopt_bridge import to_torchopt as to_torchopt
from .types import Optimizer as Optimizer
from .wise import learned_wise as learned_wise
from .wise import wise as wise

__version__ = "0.1.0"
