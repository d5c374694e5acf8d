"""How to differentiate an optimizer with respect to its hyperparameters, and optimizers that tune optimizers."""

from .forward import Forward as Forward
from .hypergradient import hypergradient as hypergradient
from .implicit import Implicit as Implicit
from .inner import Inner as Inner
from .inner import Strategy as Strategy
from .one_step import GradientStrategy as GradientStrategy
from .one_step import OneStep as OneStep
from .one_step import Previous as Previous
from .tuned import TunedState as TunedState
from .tuned import hyper as hyper
from .unroll import Unroll as Unroll
