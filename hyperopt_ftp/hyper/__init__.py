"""How to differentiate an optimizer with respect to its hyperparameters, and optimizers that tune optimizers."""

from ..optimizers.tuned import TunedState as TunedState
from ..optimizers.tuned import hyper as hyper
from .core.inputs import TrainInputs as TrainInputs
from .core.inputs import TrainOutputs as TrainOutputs
from .core.problem import InnerProblem as InnerProblem
from .core.strategy import Costs as Costs
from .core.strategy import Strategy as Strategy
from .core.strategy import with_pullback as with_pullback
from .cost.estimate import Estimate as Estimate
from .cost.estimate import estimate as estimate
from .distributed.data_parallel import data_parallel as data_parallel
from .hypergradient import hypergradient as hypergradient
from .layers.remat import remat as remat
from .layers.remat_layers import remat_layers as remat_layers
from .loops.bilevel import BilevelState as BilevelState
from .loops.bilevel import Record as Record
from .loops.bilevel import bilevel as bilevel
from .loops.tpgm import tpgm as tpgm
from .loops.tpgm import tpgm_radius as tpgm_radius
from .strategies.forward import Forward as Forward
from .strategies.implicit import Implicit as Implicit
from .strategies.solvers import Solved as Solved
from .strategies.unroll import Unroll as Unroll
from .strategies.zero_order import ZeroOrder as ZeroOrder
from .train import train as train
