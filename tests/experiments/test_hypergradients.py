"""FTP's closed forms against derivatives, the cheap training against the full one, and a tiny run of the study."""

import dataclasses
import gc

import pytest
import torch

from experiments.common.errors import InputError
from experiments.common.task import Network
from experiments.hypergradients import radii
from experiments.hypergradients.config import WAYS, Config
from experiments.hypergradients.radii import Problem, agreement, check_in_float64, compared, trained
from experiments.hypergradients.study import STUDY
from tests.experiments.running import ran, refused, results
from tests.experiments.small_task import Net, Points

TINY = Config(("styles",), (1, 2), (4,), ("adamw", "paper", "paper_all", "every2", "validation4"), (0, 1), 8, 4, 0.05)


class Task(Points):
    """In float64, on request."""

    dtype = torch.float32

    def _draw(self, places, chosen, generator):
        inputs, targets = super()._draw(places, chosen, generator)
        return inputs.to(self.dtype), targets

    def new_model(self) -> Net:
        return super().new_model().to(self.dtype)


class Problems:
    """As the study's, of points."""

    def __init__(self, config: Config, progress, dtype=torch.float32) -> None:
        self.config, self.progress = config, progress
        task = Task(dropout=0.0)
        task.dtype = dtype
        self.problem = Problem(task, task.new_model().state_dict(), Options())

    def fingerprint(self) -> str:
        return self.problem.task.fingerprint()

    def of(self, name: str, seed: int) -> Problem:
        return self.problem


class Options:
    head_is_new = False


@pytest.fixture(autouse=True)
def _uncollected(monkeypatch):
    """Each measurement collects garbage first: a quarter of a second beside all that tests have imported."""
    monkeypatch.setattr(gc, "collect", lambda: 0)


@pytest.fixture
def data(quiet) -> Problems:
    return Problems(TINY, quiet)


def weights(model: Network) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


def test_one_step_equals_ftps_exact_form_and_a_wrong_form_is_an_error(data, monkeypatch):
    check_in_float64()
    found = compared(data, "styles", 0, 4)
    for outer, kinds in found.items():
        assert kinds["K=2"][outer] == [1, 1, 1]  # the deepest is the measure
        assert kinds["exact"][outer] == pytest.approx(kinds["K=1"][outer], abs=1e-4)
        assert {*kinds} == {"paper", "exact", "K=1", "K=2"}
    assert found["training"]["exact"]["training"] != found["training"]["exact"]["validation"]
    right = radii.radius_gradient
    monkeypatch.setattr(radii, "radius_gradient", lambda *of: right(*of) * (1 + 2e-5))
    with pytest.raises(InputError, match="FTP's exact form is"):
        compared(data, "styles", 0, 4)
    monkeypatch.setattr(radii, "radius_gradient", lambda *of: right(*of) * (1 + 2e-12))
    with pytest.raises(InputError, match="FTP's exact form is"):
        check_in_float64()


@pytest.mark.parametrize("radius_lr", [1e-2, 1.0])  # the second reaches past the largest norm
def test_a_validation_gradient_in_every_step_is_the_full_training_through_one(radius_lr, quiet, monkeypatch):
    monkeypatch.setattr(radii, "RADIUS_LR", radius_lr)
    data = Problems(TINY, quiet, torch.float64)
    ways = {"cheap": WAYS["every1"], "full": dataclasses.replace(WAYS["validation4"], depth=1)}
    monkeypatch.setattr(radii, "WAYS", ways)
    cheap, full = (weights(trained(data.problem, TINY, way, 0, 8, quiet)) for way in ways)
    start = data.problem.start
    for name, w in cheap.items():
        assert torch.equal(w, start[name]) is False
        torch.testing.assert_close(w, full[name], rtol=1e-12, atol=1e-12)


def test_between_validation_batches_radii_are_held(quiet, monkeypatch):
    data, project, seen = Problems(TINY, quiet, torch.float64), radii.project, []

    def looked_at(w, w0, radius):
        seen.append(radius.item())
        return project(w, w0, radius)

    monkeypatch.setattr(radii, "project", looked_at)
    layers = len(weights(trained(data.problem, TINY, "every2", 0, 4, quiet)))
    rows = [seen[k : k + layers] for k in range(0, len(seen), layers)]
    assert len(rows) == 4
    assert rows[0] == [1e-8] * layers
    assert rows[1] == rows[2] != rows[3]  # they move after the first and the third step
    assert max(rows[1]) == pytest.approx(2 * radii.RADIUS_LR, rel=1e-3)  # Adam's first move, twice as large


def test_agreement_is_cosine_signs_and_ratio():
    assert agreement([1.0, -1.0], [2.0, 0.0]) == [0.7071, 0.5, 0.7071]
    assert agreement([0.0], [0.0]) == [0, 1, 0]


def test_a_run_stops_goes_on_and_may_get_more(tmp_path, data):
    out, whole = tmp_path / "run", tmp_path / "whole"
    tiny = ["--steps", "8", "--batch-size", "4", "--lr", "0.05", "--seeds", "0", "1", "--depths", "1", "2", "--tasks"]
    tiny += ["styles", "--ways", *TINY.ways, "--stages"]
    assert ran(STUDY, *tiny, "4", "--out", str(out), data=data, stop_before="styles, split 1, paper").status == 130
    assert len(results(out)) == 6
    assert ran(STUDY, *tiny, "4", "--out", str(out), data=data).status == 0
    assert ran(STUDY, *tiny, "4", "8", "--out", str(out), data=data).status == 0
    assert ran(STUDY, *tiny, "4", "8", "--out", str(whole), data=data).status == 0

    def timeless(folder):
        return {name: one for name, one in results(folder, "mib").items() if "time" not in name}

    assert timeless(out) == timeless(whole)
    assert {name.rpartition(", ")[2] for name in timeless(out)} == {*TINY.ways, "stage 4", "stage 8"}
    report = (out / "report.md").read_text()
    for row in ("full, K = 2, validation", "styles: FTP, paper, training", "step 8: ", "one step, validation, every 2"):
        assert f"| {row}" in report
    assert all((out / f"{name}.png").exists() for name in ("agreement", "gain"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--tasks emoji", "--tasks emoji: there are styles, minilm, imagenet, scenes"),
        ("--ways paper full", "--ways full: there are adamw, paper"),
        ("--ways adamw paper", "give paper and paper_all too"),
        ("--depths 2 4", "must rise, from 1"),
        ("--depths 1 4 2", "must rise, from 1"),
        ("--depths 1 32", "must be below 17, the steps made so far"),
        ("--stages 17 40", "must rise, from 1, and to 32 at most"),
        ("--seeds 1 1", "give different integers"),
    ],
)
def test_bad_input_names_what_is_allowed(arguments, said, capsys):
    assert refused(STUDY, *arguments.split())
    assert said in " ".join(capsys.readouterr().err.split())
