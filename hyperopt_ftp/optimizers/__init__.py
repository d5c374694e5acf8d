"""Pure optimizers and combinators, one file each."""

from .adagrad import adagrad as adagrad
from .adam import adam as adam
from .adam import adamw as adamw
from .combinators import anneal as anneal
from .combinators import clipped as clipped
from .combinators import damped as damped
from .combinators import scheduled as scheduled
from .lion import lion as lion
from .rmsprop import rmsprop as rmsprop
from .sgd import sgd as sgd
