"""Drop-in ``torch.optim`` classes: the only layer that mutates and picks executions."""

from .family import L2SP as L2SP
from .family import SPD as SPD
from .family import CautiousDecay as CautiousDecay
from .family import DiGraP as DiGraP
from .ftp_adamw import FTPAdamW as FTPAdamW
from .ftp_sgd import FTPSGD as FTPSGD
from .ftp_wrapper import FTP as FTP
from .hypergradient_descent import HypergradientDescent as HypergradientDescent
from .mars_sp import MARSSP as MARSSP
from .watch import measure as measure
from .watch import watch as watch
