"""Optimizers held near an anchor, as pure functions: one rule a file, and what a rule of one's own is made of."""

from .cautious_decay import cautious_decay as cautious_decay
from .digrap import digrap as digrap
from .directed import directed as directed
from .ftp import ftp as ftp
from .ftp import radius_gradient as radius_gradient
from .l2sp import l2sp as l2sp
from .projected import projected as projected
from .projections import project as project
from .projections import row_norm as row_norm
from .rule import Rule as Rule
from .rule import Spec as Spec
from .rule import anchored as anchored
from .spd import spd as spd
