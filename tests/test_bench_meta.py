"""The meta-learning programs: whoever has written one, it learns the same; one that does not is named."""

from __future__ import annotations

import pytest

from benchmarks.bench_meta import table
from benchmarks.meta import implicit_maml
from benchmarks.meta.lines import lines_of
from benchmarks.meta.programs import PROGRAMS, begun, contenders_of, off, scored


@pytest.mark.filterwarnings("ignore")  # the peers' own, and that five products do not solve a system
@pytest.mark.parametrize("program", PROGRAMS)
def test_equal_programs_reach_equal_scores(program, monkeypatch):
    monkeypatch.setattr(implicit_maml, "STEPS", 10)
    names = [name for name in contenders_of(program) if name != "ours, compiled"]  # it compiles for seconds
    assert {"ours", "TorchOpt"} <= {*names}
    rows = {name: scored(program, 2, begun(program, name)) for name in names}
    assert off(rows) == [], rows


def test_who_has_another_score_is_named():
    rows = {name: {"score": x, "rounding": 1e-4} for name, x in {"ours": -2.0, "a": -2.0001, "b": -2.001}.items()}
    rows["c"] = {"score": float("nan"), "rounding": 1e-4}
    assert off(rows) == ["b", "c"]


def test_lines_are_those_of_code():
    def function(x):
        """Two lines
        of words.
        """
        import math

        # a remark
        return [
            math.sqrt(x),  # another
        ]

    assert lines_of(function) == 4


def test_table_of_what_was_measured():
    row = {"lines": 9, "seconds": 0.5, "peak_mib": 3.0, "first": 1.0, "score": 2.0}
    assert "| Meta-SGD | ours | 9 | 500.00 ms | 1.0 s | 3.00 MiB | 2.00000 |" in table({"Meta-SGD": {"ours": row}})
