"""A state machine that does to `bilevel` what scripts do, in any order: ``make fuzz`` makes many thousand steps of it.

Each round is compared, to the last bit, with one call of `hypergradient` from the state that it begins with, and with a
step of Adam by hand on what is tuned; whatever else is done must leave that state, and every earlier one, as it was.
"""

from __future__ import annotations

import functools
import io
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from torch import Tensor

import hyperopt_ftp as hft
from hyperopt_ftp import tree
from hyperopt_ftp.hyper import BilevelState, Record

from ...support.compare import kept, same

F64 = torch.float64
UNIT = torch.finfo(F64).eps
ROWS, BY_LR = 11, 0.02
#: Domains: what a tuned value may be.
BOUNDS = {
    "lr": (0.0, torch.finfo(F64).max),
    "betas.0": (0.0, 1 - UNIT / 2),
    "momentum": (0.0, 1 - UNIT / 2),
    "radius": (1e-8, torch.inf),
}
#: Of equal derivatives, but for rounding.
STRATEGIES: dict[str, Callable[[int], Any]] = {
    "default": lambda steps: None,
    "every step": lambda steps: hft.Unroll(checkpoint=1),
    "log": lambda steps: hft.Unroll(checkpoint="log"),
    "graphs": lambda steps: hft.Unroll(checkpoint=False),
    "last": lambda steps: hft.Unroll(truncate=steps),
    "forward": lambda steps: hft.Forward(),
}
BY = {"pure": hft.adam(lr=BY_LR), "torch": functools.partial(torch.optim.Adam, lr=BY_LR)}
PLANS = st.fixed_dictionaries(
    {
        "rule": st.sampled_from(["adam", "sgd"]),
        "by": st.sampled_from(list(BY)),
        "maps": st.fixed_dictionaries(
            {
                "lr": st.sampled_from(["log", "clip", None]),
                "beta": st.sampled_from(["logit", "clip", None]),
                "radius": st.sampled_from(["clip", None]),
                "loss.l2": st.sampled_from(["log", "clip", None]),
                "loss.weights": st.just("clip"),
            }
        ),
        "ball": st.booleans(),
        "radius": st.sampled_from([0.5, 0.05]),
        "lr": st.sampled_from([0.1, 0.03]),
        "inner_steps": st.integers(1, 4),
        "dropout": st.sampled_from([0.0, 0.3]),
        "seed": st.integers(0, 99),
    }
)


def counted(**strategies: Any) -> Callable:
    """A rule that the machine's tally counts; a round may follow."""

    def decorate(function: Callable) -> Callable:
        @rule(then=st.booleans(), **strategies)
        @functools.wraps(function)
        def run(self: Any, then: bool, **values: Any) -> None:
            self.tally[function.__name__] += 1
            function(self, **values)
            if then:
                self.nothing_has_changed()
                self.advance()

        return run

    return decorate


class Machine(RuleBasedStateMachine):
    def __init__(self, tally: Counter[str]) -> None:
        super().__init__()
        self.tally = tally

    @initialize(plan=PLANS)
    def build(self, plan: dict[str, Any]) -> None:
        self.plan, self.steps = plan, plan["inner_steps"]
        torch.manual_seed(plan["seed"])
        self.rows = [(torch.randn(n, 3, dtype=F64), torch.arange(4 * i, 4 * i + n)) for i, n in enumerate((4, 4, 3))]
        self.held = [(torch.randn(n, 3, dtype=F64),) for n in (4, 3)]
        self.params = {"w": torch.randn(3, 2, dtype=F64), "b": torch.randn(2, dtype=F64)}
        beta = {"adam": "betas.0", "sgd": "momentum"}[plan["rule"]]
        names = {"beta": beta} | ({} if plan["ball"] else {"radius": ""})
        self.maps = {names.get(n, n): kind for n, kind in plan["maps"].items() if kind and names.get(n, n)}
        self.optimizer = self._optimizer(plan["rule"])
        self.own = {"l2": {k: torch.tensor(0.01, dtype=F64) for k in self.params}, "weights": torch.ones(ROWS).double()}
        self.strategy, self.not_finite, self.reset = "default", "skip", None
        self.spoilt = {"train": 0.0, "outer": 0.0}  # added to the first number of each example
        self.state: BilevelState | None = None
        self.history: list[tuple[BilevelState, Any]] = []  # states, and copies that nobody else holds
        self.given = kept(self.arguments())
        self.outer_steps = 1000
        self.run = self.start()

    def arguments(self) -> Any:
        return self.params, self.own, self.optimizer.hparams, self.rows, self.held

    def _optimizer(self, rule: str) -> hft.Optimizer:
        lr = self.plan["lr"]
        base = hft.adam(lr=lr, eps=1e-2) if rule == "adam" else hft.sgd(lr=lr, momentum=0.6)
        return hft.projected(base, self.params, radius=self.plan["radius"]) if self.plan["ball"] else base

    def train_loss(self, p: dict[str, Tensor], batch: Any, own: dict[str, Any]) -> Tensor:
        x, i = self.seen(batch, "train"), batch[1]
        errors = (torch.tanh(F.dropout(x, self.plan["dropout"]) @ p["w"] + p["b"]) - 0.5).square().mean(1)
        return (own["weights"][i] * errors).mean() + sum(own["l2"][k] * p[k].square().sum() for k in p)

    def outer_loss(self, p: dict[str, Tensor], batch: Any) -> Tensor:
        return (torch.tanh(self.seen(batch, "outer") @ p["w"] + p["b"]) - 0.3).square().mean()

    def seen(self, batch: Any, where: str) -> Tensor:
        return torch.cat([batch[0][:, :1] + self.spoilt[where], batch[0][:, 1:]], 1)

    def start(self, anew: bool = False) -> Iterator[Record]:
        return hft.bilevel(
            self.optimizer, BY[self.plan["by"]], tuple(self.maps), self.train_loss, self.outer_loss, self.params,
            self.rows, self.held, inner_steps=self.steps, outer_steps=self.outer_steps,
            strategy=STRATEGIES[self.strategy](self.steps), constrain=self.maps, hparams=self.first_hparams(),
            state=None if anew else self.state, reset=self.reset, not_finite=self.not_finite,
        )  # fmt: skip

    def first_hparams(self) -> dict[str, Any]:
        return {**self.optimizer.hparams, "loss": self.own}

    # -- a round ------------------------------------------------------------------------------------------------------

    def advance(self) -> bool:
        """The next round, compared with the call; False: the run has ended or failed, and is started anew."""
        done = 0 if self.state is None else int(self.state.step)
        if done >= self.outer_steps:
            assert next(self.run, None) is None
            self.outer_steps += 1000
            self.run = self.start()
            return False
        batches = [self.rows[(done * self.steps + i) % len(self.rows)] for i in range(self.steps)]
        held_out = self.held[done % len(self.held)]
        before = torch.get_rng_state()
        value, slopes, (params, inner) = self.by_hypergradient(done + 1, batches, held_out)
        after = torch.get_rng_state()
        torch.set_rng_state(before)
        lost = not is_finite((params, inner))
        skipped = tuple(name for name, x in slopes.items() if not is_finite(x))
        if self.not_finite == "error" and (lost or skipped):
            with pytest.raises(FloatingPointError, match=f"not finite at outer step {done + 1} "):
                next(self.run)
            self.run = self.start()
            self.tally["error"] += 1
            return False
        record = next(self.run)
        assert torch.equal(torch.get_rng_state(), after)
        assert same((torch.tensor(record.value, dtype=F64), record.hypergradient), (value, slopes))
        assert record.step == int(record.state.step) == done + 1
        assert record.tuned.keys() == record.hypergradient.keys() == self.maps.keys()
        if lost:
            assert record.skipped == tuple(self.maps)
            now = record.state
            if self.state is not None:
                assert same(now._replace(step=0, trained=0), self.state._replace(step=0, trained=0))
        else:
            assert record.skipped == skipped
            assert same(tree.leaves((record.state.params, record.state.inner)), tree.leaves((params, inner)))
            self.compare(record)
        self.tally["lost" if lost else "skipped" if skipped else "round"] += 1
        self.state = record.state
        self.history.append((record.state, kept_state(record.state)))
        return True

    def by_hypergradient(self, step: int, batches: list[Any], held_out: Any) -> Any:
        """What the next round trains, in one call."""
        hparams = self.first_hparams()
        for path, x in ({} if self.state is None else self.state.tuned).items():
            hparams = tree.replaced(hparams, path, x)
        params, inner = (self.params, None) if self.state is None else (self.state.params, self.state.inner)
        if self.reset is not None:
            params, inner = self.reset(step) if callable(self.reset) else self.reset, None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is not finite
            return hft.hypergradient(
                self.optimizer, self.train_loss, lambda p: self.outer_loss(p, held_out), params, batches,
                tuple(self.maps), hparams, inner, STRATEGIES[self.strategy](self.steps),
            )  # fmt: skip

    def compare(self, record: Record) -> None:
        """The outer step with one by hand along the subject's own slopes."""
        first = {name: tree.entry(self.first_hparams(), name) for name in self.maps}
        tuned, state = (first if self.state is None else self.state.tuned), record.state
        begin, before = outer_of({"state": {}} if self.state is None else self.state.outer, tuned)
        (outer, rounds), norms = outer_of(state.outer, state.tuned), state.inner.norms if self.plan["ball"] else {}
        assert rounds == before + 1
        assert same(record.tuned, state.tuned)
        expected = outer_step(self.maps, tuned, begin, rounds, record.hypergradient, norms)
        for (name, b), a in zip(tree.named(expected), tree.leaves((state.tuned, outer)), strict=True):
            assert (a.dtype, a.shape) == (b.dtype, b.shape), name
            assert bool(((a - b).abs() <= 1000 * UNIT * (1 + b.abs())).all()), (name, a, b)  # some hundred operations

    # -- rules --------------------------------------------------------------------------------------------------------

    @counted(often=st.integers(1, 4))
    def rounds(self, often: int) -> None:
        for _ in range(often):
            self.advance()

    @counted(strategy=st.sampled_from(list(STRATEGIES)))
    def go_on_with_another_strategy(self, strategy: str) -> None:
        self.strategy = strategy
        self.run = self.start()

    @counted()
    def save_and_load(self) -> None:
        """As docs/checkpoints.md tells, into a process that has made one round for the structure."""
        if self.state is None:
            return
        file, whole = io.BytesIO(), isinstance(self.state.outer, dict)
        outer = {"outer": self.state.outer} if whole else {}
        state = self.state._replace(outer=()) if whole else self.state
        torch.save({"leaves": tree.leaves(state), **outer}, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        like, rng = self.first_state(), torch.get_rng_state()
        loaded = tree.flatten(like._replace(outer=()) if whole else like)[1](saved["leaves"])
        loaded = loaded._replace(outer=saved["outer"]) if whole else loaded
        assert same(loaded, self.state)
        torch.set_rng_state(rng)
        self.state = loaded
        self.run = self.start()

    def first_state(self) -> BilevelState:
        rng, spoilt, self.spoilt = torch.get_rng_state(), self.spoilt, {"train": 0.0, "outer": 0.0}
        first = next(self.start(anew=True)).state
        self.spoilt = spoilt
        torch.set_rng_state(rng)
        return first

    @counted(back=st.integers(1, 5))
    def go_on_from_a_state(self, back: int) -> None:
        """The last one, or an earlier one."""
        if self.history:
            self.state = self.history[-min(back, len(self.history))][0]
            self.run = self.start()

    @counted(more=st.integers(0, 3))
    def end_the_run(self, more: int) -> None:
        """With few outer steps left, or none."""
        done = 0 if self.state is None else int(self.state.step)
        self.outer_steps = max(done + more, 1)
        self.run = self.start()
        while self.advance():
            pass

    @counted(
        where=st.sampled_from(["train", "outer"]),
        what=st.sampled_from([float("nan"), float("inf")]),
        how=st.sampled_from(["error", "skip"]),
    )
    def read_a_spoilt_batch(self, where: str, what: float, how: str) -> None:
        self.not_finite = how
        self.run = self.start()
        self.spoilt[where] = what
        self.advance()
        self.spoilt[where] = 0.0

    @counted(how=st.sampled_from(["tree", "function", None]))
    def choose_where_rounds_start(self, how: str | None) -> None:
        near = {k: w + 0.1 for k, w in self.params.items()}
        far = [{k: w - 0.1 * i for k, w in self.params.items()} for i in range(3)]
        self.reset = {"tree": near, "function": lambda step: far[step % 3], None: None}[how]
        self.run = self.start()

    # -- what holds after each ----------------------------------------------------------------------------------------

    @invariant()
    def nothing_has_changed(self) -> None:
        if not hasattr(self, "given"):
            return
        assert same(kept(self.arguments()), self.given)
        for state, copied in self.history[-6:]:
            assert same(kept_state(state), copied)


def kept_state(state: BilevelState) -> Any:
    return kept([list(x) if isinstance(x, tuple) else x for x in (tree.leaves(state._replace(outer=())), state.outer)])


def outer_of(outer: Any, tuned: Any) -> tuple[list[list[Tensor]], int]:
    """Moments of Adam outside by leaf, and its steps. One of torch has none before the first."""
    if not isinstance(outer, dict):
        return [tree.leaves(outer.exp_avg), tree.leaves(outer.exp_avg_sq)], int(outer.step)
    if not outer["state"]:
        return [[torch.zeros_like(x) for x in tree.leaves(tuned)] for _ in range(2)], 0
    rows = [outer["state"][i] for i in sorted(outer["state"])]
    return [[row["exp_avg"] for row in rows], [row["exp_avg_sq"] for row in rows]], int(rows[0]["step"])


def is_finite(values: Any) -> bool:
    return all(bool(x.isfinite().all()) for x in tree.leaves(values))


def outer_step(maps: Any, tuned: Any, outer: Any, t: int, slopes: Any, norms: Any) -> tuple[Any, list[list[Tensor]]]:
    """One step of Adam on the free values along the slopes that are finite, and what the maps make of them."""
    new: dict[str, Any] = {}
    moments: list[list[Tensor]] = [[], []]
    for name, x in tuned.items():
        kind, held = maps[name], not is_finite(slopes[name])
        low, high = BOUNDS.get(name, (-torch.inf, torch.inf))
        leaves = []
        for leaf, slope in zip(tree.leaves(x), tree.leaves(slopes[name]), strict=True):
            i, h = len(moments[0]), torch.zeros_like(leaf) if held else slope
            u = {"clip": leaf, "log": leaf.log(), "logit": leaf.log() - (-leaf).log1p()}[kind]
            g = {"clip": h, "log": h * leaf, "logit": h * leaf * (1 - leaf)}[kind]
            m = 0.9 * outer[0][i] + 0.1 * g
            v = 0.999 * outer[1][i] + 0.001 * g**2
            u = u - BY_LR * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
            natural = {"clip": u, "log": u.exp(), "logit": 1 / (1 + (-u).exp())}[kind]
            leaves.append(leaf if held else natural.clamp(low, high))
            moments[0].append(m)
            moments[1].append(v)
        new[name] = tree.flatten(x)[1](leaves)
    if "radius" in new:  # at most the largest norm
        new["radius"] = {k: torch.minimum(r, norms[k].max()) for k, r in new["radius"].items()}
    return new, moments


@pytest.mark.filterwarnings("ignore:the hypergradient of:UserWarning")  # of a radius that no row reaches
def test_whatever_is_done_in_whatever_order_rounds_are_what_they_are_alone():
    thorough = settings.default.max_examples > 100
    tally: Counter[str] = Counter()
    runs = settings(
        max_examples=600 if thorough else 16,
        stateful_step_count=30,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(functools.partial(Machine, tally), settings=runs)
    print(f"\n{tally.total()} rule steps and rounds: {dict(tally.most_common())}")
    assert tally["round"] >= (10_000 if thorough else 200)
    assert all(tally[end] for end in ("lost", "skipped", "error"))
    assert all(tally[rule.function.__name__] for rule in Machine.setup_state().rules)
