"""TEMPORARY, as what it tests: what is said of runs that kept no answers, by scores that are made up."""

import pytest

from experiments.sensitivity.by_tests import at_equal_id, best_rate, choices, table, worst
from experiments.sensitivity.summary import all_scores, good, scores_of

# ID and OOD of two splits by rate: AdamW is best at 0.1 and lost at 1, FTP at all three about as good.
ADAMW = {0.01: [(60, 50), (62, 52)], 0.1: [(70, 55), (72, 57)], 1.0: [(20, 20), (22, 22)]}
FTP = {0.01: [(60, 58), (62, 60)], 0.1: [(69, 58), (72, 59)], 1.0: [(72, 54), (73, 57)]}


@pytest.fixture
def content() -> dict:
    pieces = {}
    for method, by_rate in {"adamw": ADAMW, "ftp": FTP}.items():
        for lr, splits in by_rate.items():
            for seed, (id_, ood) in enumerate(splits):
                scores = {method: {"id": float(id_), "ood": float(ood)}}
                if method == "adamw":
                    scores["wise"] = {"id": id_ - 1.0, "ood": ood + 1.0}
                pieces[f"split {seed}, {method}, lr {lr:g}"] = {"lr": lr, "seed": seed, "scores": scores}
    return {"results": pieces, "summary": choices({"results": pieces})}


def test_what_the_numbers_of_a_method_are(content):
    scores = scores_of(content)
    assert (best_rate(scores, "adamw"), best_rate(scores, "ftp")) == (0.1, 1.0)
    assert worst(scores, "ftp", "ood") == pytest.approx((-0.5, 12.706 * 0.5), rel=1e-4)  # t of two values
    assert good(scores, "adamw", content["summary"]) == [0.1]
    assert good(scores, "wise", content["summary"]) == [0.1]
    assert good(scores, "ftp", content["summary"]) == [0.1, 1.0]
    assert at_equal_id(scores, "ftp") == 0.1  # where it learns half a point less, and keeps more than at 1
    assert at_equal_id(scores, "wise") is None


def test_its_table(content):
    header, rows = table(content)
    assert header[:3] == ["method", "best rate", "ID / OOD"]
    by_method = {row[0]: row[1:] for row in rows}
    assert by_method["AdamW"][:6] == ["0.1", "71.0 / 56.0", "+0.0 ± 0.0", "", "+0.0 ± 0.0", ""]
    # The means are 3 and -1 standard errors from 0; with one degree of freedom t is Cauchy's: 1/2 + atan(x) / pi.
    assert by_method["FTPAdamW"][:6] == ["1 (edge)", "72.5 / 55.5", "+1.5 ± 6.4", "90 %", "-0.5 ± 6.4", "25 %"]
    assert by_method["WiSE-FT"][6] == "none"
    assert by_method["FTPAdamW"][-1] == "0.1 to 1"
    assert all_scores(content)[1][0] == ["AdamW", "61.0 / 51.0", "71.0 / 56.0", "21.0 / 21.0"]
