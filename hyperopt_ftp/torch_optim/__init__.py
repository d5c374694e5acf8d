"""Drop-in ``torch.optim`` classes: the only layer that mutates and picks backends."""

from .cautious_decay import CautiousDecay as CautiousDecay
from .digrap import DiGraP as DiGraP
from .ftp import FTP as FTP
from .ftp_adamw import FTPAdamW as FTPAdamW
from .ftp_sgd import FTPSGD as FTPSGD
from .hypergradient_descent import HypergradientDescent as HypergradientDescent
from .l2sp import L2SP as L2SP
from .mars_sp import MARSSP as MARSSP
from .spd import SPD as SPD
