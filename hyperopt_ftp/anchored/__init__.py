"""Optimizers held near an anchor, as pure functions, one rule a file; here is what a rule of one's own is made of."""

from .ftp import radius_gradient as radius_gradient
from .projections import project as project
from .projections import row_norm as row_norm
from .rule import Rule as Rule
from .rule import Spec as Spec
from .rule import anchored as anchored
