"""How to differentiate an optimizer with respect to its hyperparameters, and optimizers that tune optimizers."""

from .bilevel import BilevelState as BilevelState
from .bilevel import Record as Record
from .bilevel import bilevel as bilevel
from .data_parallel import data_parallel as data_parallel
from .estimate import Estimate as Estimate
from .estimate import estimate as estimate
from .forward import Forward as Forward
from .hyper import TunedState as TunedState
from .hyper import hyper as hyper
from .hypergradient import hypergradient as hypergradient
from .implicit import Implicit as Implicit
from .linear import Solved as Solved
from .one_step import GradientStrategy as GradientStrategy
from .one_step import OneStep as OneStep
from .one_step import Previous as Previous
from .steps import Steps as Steps
from .strategy import Start as Start
from .strategy import Strategy as Strategy
from .strategy import Trained as Trained
from .tpgm import tpgm as tpgm
from .tpgm import tpgm_radius as tpgm_radius
from .train import train as train
from .unroll import Unroll as Unroll
from .zero_order import ZeroOrder as ZeroOrder
