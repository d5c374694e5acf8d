"""Every public name of optax and TorchOpt, and what there is for it here, or why there is nothing.

``python -m tests.coming_from`` writes docs/coming-from-optax.md and docs/coming-from-torchopt.md.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).resolve().parents[1] / "docs"

OWN = "[one of your own](own-optimizer.md) is short"

#: Reasons that several rows have in common, as the rows name them.
REASONS = {
    "own": f"none: {OWN}",
    "learns_lr": 'none; `hft.hyper(base, by=..., over="lr")` learns a learning rate of any base by its hypergradient',
    "line_search": "none: it evaluates the loss again, which an update here never does",
    "value": "none: it needs the value of the loss, which an update here does not get",
    "per_example": "none: `torch.func.vmap(torch.func.grad(loss), (None, 0))` gives gradients of each example; clip "
    "and sum them before `update`",
    "no_projection": "none: apply your function to the params after `update`, in the loop or a combinator of your own",
}


class Library(NamedTuple):
    """A library, its public names, and a page of tables."""

    package: str
    version: str  # whose names these are
    modules: tuple[str, ...]  # "" is the package itself; a name counts in the first module that has it
    complete: bool  # whether ``__all__`` has all that is public
    head: str
    rows: str  # below headings: names, or patterns of names, then, indented, what is here

    @property
    def page(self) -> Path:
        return DOCS / f"coming-from-{self.package}.md"


# -- optax ------------------------------------------------------------------------------------------------------------

OPTAX = Library(
    "optax",
    "0.2.8",
    (
        *("losses", "contrib", "", "transforms", "schedules", "projections", "microbatching"),
        *("experimental.aggregating", "tree", "tree_utils", "second_order", "assignment", "perturbations"),
    ),
    False,
    """\
# Coming from optax

For users of optax {version}: each public name and its equivalent here, or why there is none.
[The same task in both](coming-from.md#optax) has code.

- **An optimizer is one rule**, not a chain of scalings; combinators nest around it.
  `optax.chain(optax.clip_by_global_norm(1.0), optax.add_decayed_weights(0.1), optax.adam(1e-3))` adds the decay to
  the gradient, so it is `hft.clipped(hft.adam(lr=1e-3, weight_decay=0.1), 1.0)`.
- **A longer chain**: `optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(),
  optax.masked(optax.add_decayed_weights(1e-4), no_biases), optax.scale_by_learning_rate(schedule))` is
  `hft.scheduled(hft.clipped(hft.decayed(hft.adam(lr=peak), 1e-4, exclude="*bias"), 1.0), lr=schedule)`.
- **`optax.MultiSteps(..., 4)`** is `hft.accumulated(..., 4)` around it all. A schedule inside counts updates.
- **Names and defaults** are torch's: `learning_rate` is `lr`, `b1` and `b2` are `betas`, and the `decay` of RMSprop is
  `alpha`. Defaults differ from optax's: give every number.
- **In place of a mask** use a tree of numbers (`weight_decay={{"w": 0.1, "b": 0.0}}`), `exclude`, or `hft.partition`.

Losses and functions of arrays and trees are out of scope; each of their modules has one row.

This page is written by `python -m tests.coming_from`. Tests compare its names with those of optax, and of this package.
""",
    """
# Optimizers
sgd
    `hft.sgd`
adam
    `hft.adam`; `eps_root` has the same name. `nesterov=True` is near `hft.nadam`
adamw
    `hft.adamw`
amsgrad
    `hft.adam(amsgrad=True)`: as in torch, the largest second moment is kept before its bias is corrected
nadam
    `hft.nadam`: torch's, where the momentum has a schedule of its own (`momentum_decay`)
nadamw
    `hft.nadam(decoupled_weight_decay=True)`
adamax
    `hft.adamax`
adamaxw
    `hft.decayed(hft.adamax(...), weight_decay=...)`
adadelta
    `hft.adadelta`
adafactor
    `hft.adafactor`: torch's, without momentum
adagrad
    `hft.adagrad`; optax starts its sum at 0.1 and has `eps` inside the root
adan
    `hft.adan`, as in the authors' code: it weighs differences of gradients by `b2`, optax by `1 - b2`; its decay is the
    paper's proximal one, that of optax decoupled; optax has `eps_root=1e-8`
lion
    `hft.lion`
radam
    `hft.radam`
rmsprop
    `hft.rmsprop`, also `centered` and `nesterov`; optax has `eps` inside the root by default
rprop
    `hft.rprop`, torch's; optax 0.2.8 is one update late, so its first update moves nothing
sign_sgd
    `hft.signum(momentum=0.0)`
signum
    `hft.signum`
noisy_sgd
    `hft.noisy(hft.sgd(...), scale=..., decay=0.55)`
contrib.adopt
    `hft.adopt`
contrib.muon
    `hft.muon` for matrices; with `hft.partition`, `hft.adamw` for the rest
contrib.schedule_free_sgd
    `hft.schedule_free_sgd`
contrib.schedule_free_adamw
    `hft.schedule_free_adamw`
contrib.schedule_free
    none around any base: `hft.schedule_free_sgd` and `hft.schedule_free_adamw` are whole rules
contrib.schedule_free_eval_params
    `hft.averages(params, state)`
adabelief fromage lamb lars novograd sm3 yogi
contrib.acprop contrib.ademamix contrib.simplified_ademamix contrib.madgrad contrib.galore
optimistic_gradient_descent optimistic_adam optimistic_adam_v2
    {own}
lbfgs
    {line_search}
polyak_sgd contrib.momo contrib.momo_adam
    {value}
contrib.cocob contrib.dadapt_adamw contrib.dog contrib.dowg contrib.prodigy contrib.mechanize
    {learns_lr}
contrib.sam
    none: it takes two gradients in a step. In the loop: take the gradient at `params + rho * g / norm(g)` and give it
    to `update`
contrib.sophia contrib.hutchinson_estimator_diag_hessian
    none: it needs products with the Hessian, which an update here does not get
contrib.dpsgd contrib.differentially_private_aggregate
    {per_example}. Noise: `hft.noisy`
nnls
    none: a solver of one problem

# What goes around an optimizer
chain named_chain
    nesting: `hft.clipped(hft.decayed(hft.adam(), 0.1), 1.0)`. All hparams are in one dict
clip_by_global_norm
    `hft.clipped`
clip
    `hft.clipped_by_value`
clip_by_block_rms
    `hft.clipped_per_layer`, by the norm of each tensor: its root mean square times the root of its size
adaptive_grad_clip
    `hft.clipped_adaptively`: outputs are in the first dimension, as in torch. In optax they are in the last, so the
    result is that of the transpose
transforms.unitwise_norm transforms.unitwise_clip
    inside `hft.clipped_adaptively`
add_decayed_weights
    before the rule, the `weight_decay` of most optimizers here (`hft.adam`, `hft.sgd`); after it, `hft.decayed`
add_noise
    `hft.noisy`
lookahead
    `hft.lookahead`
LookaheadParams
    not needed: the slow weights are in the state, params are one tree
MultiSteps
    `hft.accumulated(base, every=k)`
apply_every ApplyEvery
    `hft.accumulated`, which takes the mean of the gradients, not their sum
skip_large_updates skip_not_finite ShouldSkipUpdateFunction
    none in an update. `hft.bilevel(not_finite="skip")`; a `GradScaler` around the drop-in classes
apply_if_finite
    none in an update: look at the gradients in the loop, as above
partition multi_transform
    `hft.partition(optimizers, labels)`
masked
    `hft.partition` with two parts; `exclude` of `hft.decayed`
freeze selective_transform
    `hft.partition` with `hft.frozen()` for the part that stays
set_to_zero
    `hft.frozen()`
identity
    not needed; `hft.sgd(lr=1.0, maximize=True)` adds its gradient to the params
inject_hyperparams inject_stateful_hyperparams
    not needed: `hparams` is an argument of every `update`, and `optimizer.hparams` has the defaults
contrib.reduce_on_plateau
    in the loop, another `lr` in `hparams`; or torch's `ReduceLROnPlateau` on `hft.PureOptimizer(params, base)`
keep_params_nonnegative
    `projection_non_negative` below
conditionally_mask conditionally_transform transforms.ConditionFn
    none: `torch.where` in a combinator of your own
flatten
    not needed: small tensors are batched automatically
zero_nans
    none: `torch.nan_to_num` on the gradients
centralize contrib.normalize normalize_by_update_norm
    none: a line on the gradients before `update`
per_example_global_norm_clip per_example_layer_norm_clip experimental.aggregating.*
    {per_example}
contrib.split_real_and_imaginary
    none: params are real
ema
    none for updates; of weights, `hft.averaged`
incremental_update periodic_update
    `hft.averaged` and `hft.lookahead`, as part of each update
snapshot monitor measure_with_ema
    not needed: read the state. `hft.watch` measures the drop-in classes
apply_updates
    not needed: `update` returns new params
microbatch microbatching.*
    none: a loop over parts of the batch and `hft.accumulated`

# Parts of optimizers
scale_by_adam scale_by_adamax scale_by_amsgrad scale_by_adadelta scale_by_adan scale_by_lion scale_by_radam
scale_by_rprop
    the optimizer of that name with `lr=1.0`, whose step has the other sign
scale_by_rms
    `hft.rmsprop(lr=1.0)`, with the other sign
scale_by_stddev
    `hft.rmsprop(lr=1.0, centered=True)`, with the other sign
scale_by_rss
    `hft.adagrad(lr=1.0)`, with the other sign
scale_by_sign
    `hft.signum(lr=1.0, momentum=0.0)`, with the other sign
scale_by_factored_rms
    `hft.adafactor`
contrib.scale_by_adopt
    `hft.adopt(lr=1.0)`, with the other sign
contrib.scale_by_muon
    `hft.muon(lr=1.0)`, with the other sign
trace
    the `momentum` of `hft.sgd`
scale scale_by_learning_rate
    the `lr` of the optimizer
scale_by_schedule
    `hft.scheduled`
scale_by_belief scale_by_novograd scale_by_optimistic_gradient scale_by_param_block_norm scale_by_param_block_rms
scale_by_sm3 scale_by_trust_ratio scale_by_yogi scale_by_distance_over_gradients
contrib.scale_by_acprop contrib.scale_by_ademamix contrib.scale_by_simplified_ademamix contrib.scale_by_cocob
contrib.scale_by_galore contrib.scale_by_madgrad
    {own}
scale_by_lbfgs scale_by_zoom_linesearch scale_by_backtracking_linesearch ZoomLinesearchInfo
value_and_grad_from_state
    {line_search}
scale_by_polyak
    {value}
scale_gradient
    a tree of learning rates, or `hft.partition`; in the loss `detach()` would be wrong in hypergradients
GradientTransformation GradientTransformationExtraArgs with_extra_args_support
    `hft.Optimizer(init, update, hparams)`
stateless stateless_with_tree_map init_empty_state
    `hft.Optimizer` with the state `()`
bias_correction update_moment update_infinity_moment update_moment_per_elem_norm
    none: a line in a rule
global_norm
    `torch.nn.utils.get_total_norm`
safe_increment safe_int32_increment
    not needed: counts are int64
safe_norm safe_root_mean_squares
    none in public; the rules here define the derivative of a root at 0 as 0
matrix_inverse_pth_root power_iteration
    `torch.linalg`
multi_normal perturbations.*
    `torch.distributions`; `hft.ZeroOrder` smooths a loss that has no derivatives

# Schedules
constant_schedule
    the number itself; `hft.schedules.constant` for a while
linear_schedule
    `hft.schedules.linear`
polynomial_schedule
    `hft.schedules.polynomial`, down to 0
exponential_decay
    `hft.schedules.exponential(rate ** (1 / steps))`; a `staircase` is `hft.schedules.piecewise`
cosine_decay_schedule
    `hft.schedules.cosine`
cosine_onecycle_schedule
    `hft.schedules.one_cycle`, torch's: the peak is at the count `share * steps - 1`, the end at `steps - 1`; in optax
    both come one update later
linear_onecycle_schedule
    `hft.schedules.one_cycle(linear=True)`, with the same shift. optax has a third phase, from `pct_final` on; near it
    is `three_phase=True`, whose second phase is as long as the first
piecewise_constant_schedule
    `hft.schedules.piecewise`, whose factors do not multiply up
piecewise_interpolate_schedule
    `hft.schedules.joined` of `hft.schedules.linear`
sgdr_schedule
    `hft.schedules.joined` of `hft.schedules.cosine`
warmup_constant_schedule
    `hft.schedules.linear(start=init / peak, end=1.0, steps=warmup_steps)`, which stays at its end
warmup_cosine_decay_schedule
    `hft.schedules.warm_up(hft.schedules.cosine(decay_steps, floor=end / peak), share=warmup_steps / decay_steps,
    start=init / peak)`; the peak is `lr`
warmup_exponential_decay_schedule
    `hft.schedules.warm_up(hft.schedules.exponential(...), share=1.0, steps=warmup_steps, start=init / peak)`
join_schedules
    `hft.schedules.joined`
Schedule ScalarOrSchedule schedules.StatefulSchedule WrappedSchedule
    a factor by the count, `hft.scheduled(base, lr=...)`; a value for each step that is an hparam, `hft.per_step`

# Projections
projections.projection_l2_ball
    `hft.projected(base, anchor, norm="l2", radius=...)`: a ball for each tensor, around the anchor
projections.projection_l1_ball
    none; `hft.projected` scales rows into a ball of the L1 norm, which is not the nearest point of it
projections.projection_non_negative projections.projection_box projections.projection_hypercube
projections.projection_linf_ball
    {no_projection}: `torch.clamp`
projections.projection_halfspace projections.projection_hyperplane projections.projection_l1_sphere
projections.projection_l2_sphere projections.projection_simplex projections.projection_vector
    {no_projection}

# Types, losses and helpers
*State
    a state is what `init` returns; its class is public in the module of the optimizer
Params Updates
    any tree of tensors
TransformInitFn TransformUpdateFn TransformUpdateExtraArgsFn
    `init` and `update` of `hft.Optimizer`
MaskOrFn MaskedNode
    not needed: what a mask says is a tree of numbers, a label or an `exclude`
contrib.GaLoreDimensionNumbers contrib.MuonDimensionNumbers
    not needed: the first dimension of a matrix is its rows
tree_map_params
    states are trees, and moments are trees like params
tree.* tree_utils.*
    out of scope: `torch.utils._pytree`, `optree`
losses.*
    out of scope: `torch.nn.functional`
second_order.*
    out of scope: `torch.func.jvp` of `torch.func.grad`
assignment.*
    out of scope: `scipy.optimize.linear_sum_assignment`
""",
)

# -- TorchOpt ---------------------------------------------------------------------------------------------------------

TORCHOPT = Library(
    "torchopt",
    "0.7.3",
    (
        *("pytree", "", "alias", "base", "clip", "combine", "diff.implicit", "diff.zero_order", "nn", "nn.stateless"),
        *("distributed", "distributed.autograd", "hook", "linalg", "linear_solve", "schedule", "transform", "update"),
        *("utils", "visual", "typing"),
    ),
    True,
    """\
# Coming from TorchOpt

For users of TorchOpt {version}: each public name and its equivalent here, or why there is none.
[The same task in both](coming-from.md#torchopt) has code.

- **One function for each optimizer**: `hft.adam` replaces `torchopt.adam`, `torchopt.Adam` and `torchopt.MetaAdam`.
- **`update` returns new params**, not a difference, and changes nothing in place.
- **Every number is a tensor argument** of each `update`: it can be differentiated, batched by `vmap` and tuned. Names
  and defaults are those of `torch.optim`. TorchOpt has other defaults in `adadelta` (`lr`), `adamax` (`lr`, `eps`) and
  `radam` (`eps`).
- **Migrate step by step**: `hft.to_torchopt` turns an optimizer of this package into a `GradientTransformation`, for
  `chain`, `FuncOptimizer`, `Optimizer` and `MetaOptimizer`. `hft.from_torchopt` converts back. Tests compare the
  optimizers of this package with `torch.optim` in each of these forms.

This page is written by `python -m tests.coming_from`. Tests compare its names with those of TorchOpt, and of this
package.
""",
    """
# Optimizers
sgd
    `hft.sgd`
adam
    `hft.adam`, also `eps_root` and `maximize`
adamw
    `hft.adamw`; for `mask`, `hft.decayed(hft.adam(...), weight_decay, exclude=...)` or a tree of numbers
rmsprop
    `hft.rmsprop`, also `centered` and `nesterov`; `initial_scale` is 0
adagrad
    `hft.adagrad`
adadelta
    `hft.adadelta`
adamax
    `hft.adamax`
radam
    `hft.radam`
accelerated_op_available transform.scale_by_accelerated_adam
    none: steps are compiled by `hft.Unroll(compile=True)` and `torch.compile`; the drop-in classes have fused
    kernels

# Classes
Optimizer
    `hft.PureOptimizer(params, optimizer)`, a `torch.optim.Optimizer` around any `hft.Optimizer`
SGD Adam AdamW AdaGrad Adagrad RMSProp RMSprop AdaDelta Adadelta AdaMax Adamax RAdam
    `torch.optim` has these; `hft.PureOptimizer` around the function of that name
FuncOptimizer
    the optimizer itself: `params, state = opt.update(grads, state, params)`
MetaOptimizer MetaSGD MetaAdam MetaAdamW MetaAdaGrad MetaAdagrad MetaRMSProp MetaRMSprop MetaAdaDelta MetaAdadelta
MetaAdaMax MetaAdamax MetaRAdam
    `hft.train(opt, loss, params, batches)`, a differentiable function; `hft.hypergradient` for one gradient,
    `hft.bilevel` for a loop
extract_state_dict recover_state_dict utils.ModuleState
    not needed: `train` and `update` do not change params and state
stop_gradient
    `tree.map_tree(torch.Tensor.detach, params)` of `hyperopt_ftp.tree`
module_clone module_detach_
    `dict(module.named_parameters())` and `torch.func.functional_call`

# What goes around an optimizer
apply_updates
    not needed: `update` returns new params
chain combine.chain_flat
    nesting: `hft.clipped(hft.adam(lr=1e-3), 1.0)`
clip_grad_norm
    `hft.clipped`; each tensor by itself `hft.clipped_per_layer`, by value `hft.clipped_by_value`
nan_to_num hook.nan_to_num_hook hook.zero_nan_hook
    none: `torch.nan_to_num` on the gradients
register_hook
    `torch.Tensor.register_hook` on params that require a gradient; in an update none
transform.add_decayed_weights
    before the rule, the `weight_decay` of `hft.adam`, `hft.sgd` and others; after it, `hft.decayed`
transform.masked
    `hft.partition`
transform.scale
    the `lr` of the optimizer
transform.scale_by_schedule
    `hft.scheduled`
transform.trace
    the `momentum` of `hft.sgd`
transform.scale_by_adam transform.scale_by_adamax transform.scale_by_adadelta transform.scale_by_radam
    the optimizer of that name with `lr=1.0`, whose step has the other sign
transform.scale_by_rms
    `hft.rmsprop(lr=1.0)`, with the other sign
transform.scale_by_stddev
    `hft.rmsprop(lr=1.0, centered=True)`, with the other sign
transform.scale_by_rss
    `hft.adagrad(lr=1.0)`, with the other sign
base.GradientTransformation base.ChainedGradientTransformation
    `hft.Optimizer`; to and from it `hft.to_torchopt`, `hft.from_torchopt`
base.identity
    not needed
base.EmptyState base.UninitializedState
    `()`; a state is what `init` returns

# Schedules
schedule.linear_schedule
    `hft.schedules.linear`
schedule.polynomial_schedule
    `hft.schedules.polynomial`, down to 0
schedule.exponential_decay
    `hft.schedules.exponential(rate ** (1 / steps))`; a `staircase` is `hft.schedules.piecewise`

# Ways to differentiate
diff.implicit.custom_root
    `hft.train(..., strategy=hft.Implicit(...))`: the condition is that the gradient of the training loss is 0
diff.implicit.ImplicitMetaGradientModule
    `hft.train` with `hft.Implicit`
diff.zero_order.zero_order diff.zero_order.ZeroOrderGradientModule
    `hft.train` with `hft.ZeroOrder`, whose methods are TorchOpt's `antithetic` and `forward`, not `naive`
nn.MetaGradientModule
    not needed: networks are called by `torch.func.functional_call`
nn.reparametrize nn.reparameterize nn.swap_state
    `torch.func.functional_call`
linear_solve.solve_cg linalg.cg
    `hft.Implicit("cg")`
linear_solve.solve_normal_cg
    none: the Hessian of a loss is symmetric, `hft.Implicit("cg", damping=...)`
linear_solve.solve_inv linalg.ns linalg.ns_inv
    `hft.Implicit("neumann")`, the series

# Processes, figures and helpers
distributed.*
    none over RPC; `torch.distributed`: [`data_parallel`](distributed.md#hypergradients) and the drop-in classes
visual.make_dot visual.resize_graph
    none: `torchviz` draws graphs; `hyperopt_ftp.plot` has figures of training
pytree.*
    out of scope: `torch.utils._pytree`, `optree`
typing.*
    `hyperopt_ftp.types`
""",
)

LIBRARIES = (OPTAX, TORCHOPT)

# -- the libraries' own lists -----------------------------------------------------------------------------------------

#: Run by itself: an imported jax warns in every test that forks.
LIST = """
import inspect, json, pkgutil, sys, warnings
warnings.simplefilter("ignore")
package, modules, complete = json.loads(sys.argv[1])
names, seen = [], []
for module in modules:
    found = pkgutil.resolve_name(f"{package}.{module}".rstrip("."))
    listed = list(getattr(found, "__all__", ()))
    for name in dict.fromkeys(listed if listed and complete else [*listed, *dir(found)]):
        value = getattr(found, name)
        if name.startswith("_") or inspect.ismodule(value) or any(n == name and v is value for n, v in seen):
            continue
        seen.append((name, value))
        names.append(f"{module}.{name}".lstrip("."))
print(json.dumps(names))
"""


def public(library: Library) -> list[str]:
    """Public names of the installed library; one that several modules have counts in the first."""
    what = json.dumps([library.package, library.modules, library.complete])
    done = subprocess.run([sys.executable, "-c", LIST, what], stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def tables(library: Library) -> dict[str, dict[tuple[str, ...], str]]:
    """By heading, what is here by the names that it is for."""
    found = {}
    for part in library.rows.split("\n# ")[1:]:
        heading, _, body = part.partition("\n")
        rows = re.findall(r"^((?:\S.*\n)+)((?: .*\n)+)", body, flags=re.MULTILINE)
        found[heading] = {tuple(names.split()): " ".join(here.split()).format(**REASONS) for names, here in rows}
    return found


def entries(library: Library) -> list[str]:
    """Names and patterns of names that the tables have."""
    return [name for rows in tables(library).values() for names in rows for name in names]


def entry(library: Library, name: str) -> str | None:
    """The one that is about a name: the longest that fits."""
    return max((pattern for pattern in entries(library) if fnmatchcase(name, pattern)), key=len, default=None)


def document(library: Library) -> str:
    parts = [library.head.format(version=library.version)]
    for heading, rows in tables(library).items():
        lines = [f"| {', '.join(f'`{name}`' for name in names)} | {here} |\n" for names, here in rows.items()]
        parts.append(f"## {heading}\n\n| {library.package} | here |\n|---|---|\n{''.join(lines)}")
    return "\n".join(parts)


if __name__ == "__main__":
    for library in LIBRARIES:
        library.page.write_text(document(library))
        print(f"wrote {library.page.name}: {len(entries(library))} names and patterns")
