"""How to differentiate an optimizer with respect to its hyperparameters, and optimizers that tune optimizers."""

from .one_step import GradientStrategy as GradientStrategy
from .one_step import OneStep as OneStep
from .one_step import Previous as Previous
from .tuned import TunedState as TunedState
from .tuned import hyper as hyper
