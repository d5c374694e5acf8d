"""Optimizers as pure differentiable functions, hyper-optimizers that tune them, and Fast Trainable Projection."""

import types as _types
import typing as _typing

import torch as _torch

from . import optimizers as optimizers
from . import schedules as schedules
from . import tree as tree
from .anchored.cautious_decay import cautious_decay as cautious_decay
from .anchored.digrap import digrap as digrap
from .anchored.directed import directed as directed
from .anchored.ftp import ftp as ftp
from .anchored.l2sp import l2sp as l2sp
from .anchored.projected import projected as projected
from .anchored.recall import recall as recall
from .anchored.spd import spd as spd
from .describe import describe as describe
from .hyper import Estimate as Estimate
from .hyper import Forward as Forward
from .hyper import Implicit as Implicit
from .hyper import Unroll as Unroll
from .hyper import ZeroOrder as ZeroOrder
from .hyper import bilevel as bilevel
from .hyper import data_parallel as data_parallel
from .hyper import estimate as estimate
from .hyper import fixed_point as fixed_point
from .hyper import hyper as hyper
from .hyper import hypergradient as hypergradient
from .hyper import load as load
from .hyper import of_module as of_module
from .hyper import remat as remat
from .hyper import remat_layers as remat_layers
from .hyper import root as root
from .hyper import steps as steps
from .hyper import tpgm as tpgm
from .hyper import tpgm_radius as tpgm_radius
from .hyper import train as train
from .mixing.lines import lines as lines
from .mixing.mixout import mixout as mixout
from .mixing.model_stock import model_stock as model_stock
from .mixing.wise import learned_wise as learned_wise
from .mixing.wise import wise as wise
from .optimizers.accumulation import accumulated as accumulated
from .optimizers.adadelta import adadelta as adadelta
from .optimizers.adafactor import adafactor as adafactor
from .optimizers.adagrad import adagrad as adagrad
from .optimizers.adam import adam as adam
from .optimizers.adam import adamw as adamw
from .optimizers.adamax import adamax as adamax
from .optimizers.adan import adan as adan
from .optimizers.adopt import adopt as adopt
from .optimizers.asgd import asgd as asgd
from .optimizers.averaging import averaged as averaged
from .optimizers.averaging import averages as averages
from .optimizers.clipping import clipped as clipped
from .optimizers.clipping import clipped_adaptively as clipped_adaptively
from .optimizers.clipping import clipped_by_value as clipped_by_value
from .optimizers.clipping import clipped_per_layer as clipped_per_layer
from .optimizers.damping import damped as damped
from .optimizers.decay import decayed as decayed
from .optimizers.depth import by_depth as by_depth
from .optimizers.frozen import frozen as frozen
from .optimizers.lion import lion as lion
from .optimizers.lookahead import lookahead as lookahead
from .optimizers.muon import muon as muon
from .optimizers.nadam import nadam as nadam
from .optimizers.noise import noisy as noisy
from .optimizers.partition import partition as partition
from .optimizers.radam import radam as radam
from .optimizers.rmsprop import rmsprop as rmsprop
from .optimizers.rprop import rprop as rprop
from .optimizers.schedule_free import schedule_free_adamw as schedule_free_adamw
from .optimizers.schedule_free import schedule_free_sgd as schedule_free_sgd
from .optimizers.scheduled import per_step as per_step
from .optimizers.scheduled import scheduled as scheduled
from .optimizers.second_moments import adabelief as adabelief
from .optimizers.second_moments import yogi as yogi
from .optimizers.sgd import sgd as sgd
from .optimizers.signum import signum as signum
from .optimizers.trust_ratio import lamb as lamb
from .optimizers.trust_ratio import lars as lars
from .torch_optim.classes.cautious_decay_around import CautiousDecay as CautiousDecay
from .torch_optim.classes.depth_groups import depth_groups as depth_groups
from .torch_optim.classes.digrap_around import DiGraP as DiGraP
from .torch_optim.classes.ftp_adamw import FTPAdamW as FTPAdamW
from .torch_optim.classes.ftp_around import FTP as FTP
from .torch_optim.classes.ftp_sgd import FTPSGD as FTPSGD
from .torch_optim.classes.l2sp_around import L2SP as L2SP
from .torch_optim.classes.mars_sp import MARSSP as MARSSP
from .torch_optim.classes.recall_around import Recall as Recall
from .torch_optim.classes.spd_around import SPD as SPD
from .torch_optim.pure.pure_optimizer import PureOptimizer as PureOptimizer
from .torch_optim.pure.torch_state import state_from as state_from
from .torchopt_bridge import from_torchopt as from_torchopt
from .torchopt_bridge import to_torchopt as to_torchopt
from .types import Optimizer as Optimizer
from .watch import measure as measure
from .watch import watch as watch

__version__ = "0.1.0"

# torch.load(weights_only=True) takes states, and what train returns: named tuples, so a file can run nothing by them.
_KEPT = ("State", "Previous", "TrainOutputs")
_torch.serialization.add_safe_globals(  # noqa: TID251
    [x for x in tuple.__subclasses__() if x.__module__.startswith(f"{__name__}.") and x.__name__.endswith(_KEPT)]
)


def __dir__() -> list[str]:
    """What is public: without the modules that Python puts beside the names that are imported from them."""
    public = (optimizers, schedules, tree)
    return sorted(name for name, x in globals().items() if x in public or not isinstance(x, _types.ModuleType))


if not _typing.TYPE_CHECKING:  # a type checker sees a wrong name by itself

    def __getattr__(name: str) -> object:
        from .calls import did_you_mean

        # Pure optimizers are functions in lower case, classes have FTP in front.
        names = [other for other in globals() if not other.startswith("_")]
        meant = [other for other in names if other.lower() in (name.lower(), f"ftp{name.lower()}")]
        hint = f"; did you mean {' or '.join(meant)}?" if meant else did_you_mean(name, names, 0.7)
        if name.lower() == "lbfgs":
            hint = ": it evaluates a loss several times in a step; solve by torch.optim.LBFGS inside hft.root"
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")
