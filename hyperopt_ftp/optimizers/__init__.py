"""Pure optimizers and combinators, one file each."""

from .adagrad import adagrad as adagrad
from .adam import adam as adam
from .adam import adamw as adamw
from .cautious_decay import cautious_decay as cautious_decay
from .combinators import anneal as anneal
from .combinators import clipped as clipped
from .combinators import scheduled as scheduled
from .directed import directed as directed
from .l2sp import l2sp as l2sp
from .lion import lion as lion
from .projected import projected as projected
from .rmsprop import rmsprop as rmsprop
from .sgd import sgd as sgd
from .spd import spd as spd
