"""Compiled steps with points that are found again, truncated, in rounds, with losses and batches that change."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

import hyperopt_ftp as hft

from ..support.problems import batches, largest_difference, loss, start
from .strategies import CHEAP, CLOSE, PAIRS, every_strategy, slope

F64 = torch.float64


@pytest.mark.parametrize(
    ("options", "runs"),
    [
        ({"checkpoint": 3}, {"training": 14, "backward": 7}),  # 20 steps in 7 segments, each twice
        ({"checkpoint": "sqrt"}, {"training": 8, "backward": 4}),
        ({}, {"training": 1, "backward": 1}),
        ({"truncate": 4}, {"training": 3, "backward": 1}),  # 16 steps in 2 segments
    ],
    ids=str,
)
def test_points_are_found_again_by_the_program(options: dict[str, Any], runs: dict[str, int], programs: list[str]):
    opt, data = hft.adam(lr=0.1, eps=1e-2), batches(20)
    outer = lambda p: loss(p, data[0])  # noqa: E731
    got, want = (
        hft.hypergradient(opt, loss, outer, start(), data, "lr", strategy=strategy)
        for strategy in (hft.Unroll(compile=CHEAP, **options), hft.Unroll(truncate=options.get("truncate")))
    )
    assert largest_difference(got, want) <= CLOSE
    assert Counter(programs) == runs


def test_rounds_of_bilevel_share_the_programs(caplog: Any):
    def rounds(strategy: Any) -> list[float]:
        found = hft.bilevel(
            hft.adam(lr=1e-2, eps=1e-2), hft.adam(lr=0.1), "lr", loss, loss, start(), batches(4), batches(2),
            inner_steps=4, outer_steps=3, constrain={"lr": "log"}, strategy=strategy,
        )  # fmt: skip
        return [record.tuned["lr"].item() for record in found]

    caplog.set_level("INFO", "hyperopt_ftp")
    got = rounds(hft.Unroll(compile=CHEAP))
    lines = [r.message for r in caplog.records if r.name == "hyperopt_ftp"]
    begins = [line.partition(":")[0].partition(" in ")[0] for line in lines]
    assert begins == [
        f"{verb} the {what} program" for what in ("training", "backward") for verb in ("compiling", "compiled")
    ]
    caplog.clear()
    assert rounds(hft.Unroll(compile=CHEAP)) == got  # another object: the same programs
    assert not caplog.records
    assert got == pytest.approx(rounds(hft.Unroll()), rel=1e-10)


@every_strategy
def test_a_loss_made_anew_is_the_new_one(name: str):
    def made(factor: float, held: Tensor) -> Any:
        return lambda p, x: factor * loss(p, x) + (held * p["b"]).sum()

    compiled, eager = PAIRS[name][0](compile=CHEAP), PAIRS[name][1]
    for value in (1.0, 3.0, 2.0):
        new = made(1.0, torch.full((4,), value, dtype=F64))
        torch.testing.assert_close(slope(new, batches(3), compiled), slope(new, batches(3), eager))
    other = made(2.0, torch.ones(4, dtype=F64))
    with pytest.warns(UserWarning, match="program was compiled again, for other shapes"):
        got = slope(other, batches(3), compiled)
    torch.testing.assert_close(got, slope(other, batches(3), eager))


@every_strategy
def test_shapes_of_one_run_have_programs_of_their_own_and_another_one_is_said(name: str):
    compiled, eager = PAIRS[name][0](compile=CHEAP), PAIRS[name][1]
    data = [batches(1)[0][: n or None] for n in (0, 0, 4, 0, 3)]
    for _ in range(2):
        got = slope(loss, data, compiled)  # a warning would be an error
        torch.testing.assert_close(got, slope(loss, data, eager))
    with pytest.raises(ValueError, match="more than 3 are met: .*float64 of shape .*Pad the batches"):
        slope(loss, [*data, data[0][:2]], compiled)
    for n in (4, 7):  # any number of steps
        torch.testing.assert_close(slope(loss, batches(n), compiled), slope(loss, batches(n), eager))
    for others in ([x[:1] for x in batches(3)], data[:1] * 3):  # other shapes, and one batch for each step
        with pytest.warns(UserWarning, match="compiled again, for other shapes"):
            got = slope(loss, others, compiled)
        torch.testing.assert_close(got, slope(loss, others, eager))


@pytest.mark.parametrize(
    ("chosen", "copies"),
    [
        (lambda rows: rows[1:4], False),
        (lambda rows: rows[:1] * 3, False),
        (lambda rows: rows[::2], True),
        (lambda rows: rows[:2] + rows[:1], True),
        (lambda rows: [rows[0], rows[1].clone()], True),
    ],
    ids=["in a row", "one", "every second", "and back", "of another tensor"],
)
def test_batches_are_copied_only_where_they_are_no_one_tensor(chosen: Any, copies: bool, monkeypatch: Any):
    data, copied, stack = chosen(list(torch.stack(batches(6)))), [], torch.stack
    expected = slope(loss, data, hft.Unroll())
    monkeypatch.setattr(torch, "stack", lambda *given: copied.append(given) or stack(*given))
    torch.testing.assert_close(slope(loss, data, hft.Unroll(compile=CHEAP)), expected)
    assert bool(copied) == copies
