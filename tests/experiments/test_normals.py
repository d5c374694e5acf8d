"""Drawn scenes and their normals against geometry by hand, the measures of the field, and the study's run."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from experiments.normals import study
from experiments.normals.metrics import angles, measured, measures
from experiments.normals.scenes import DOMAINS, Scenes
from experiments.normals.solids import BOX, CYLINDER, ELLIPSOID, FAR, hit, plane, turned
from experiments.normals.task import NormalsTask
from experiments.normals.textures import CHECKERS, DOTS, PLAIN, STRIPES, noise, texture

from ..support.measured import numbers


def one(kind, rays, centre=(0.0, 0.0, -4.0), angles=(0.0, 0.0, 0.0), radii=(1.0, 1.0, 1.0)):
    """Distance, normal and point of rays against one solid."""
    found = hit(
        torch.tensor([kind]), torch.tensor([centre]), turned(torch.tensor([angles])), torch.tensor([radii]),
        torch.tensor(rays),
    )  # fmt: skip
    return [x[0] for x in found]


def test_solids_that_are_looked_at_along_an_axis():
    ahead = [[0.0, 0.0, -1.0], [0.0, 0.9, -1.0]]
    for kind in (ELLIPSOID, BOX, CYLINDER):
        distance, normal, point = one(kind, ahead)
        assert distance.tolist() == [pytest.approx(3), FAR]
        assert normal[0].tolist() == pytest.approx([0, 0, 1], abs=1e-6)
        assert point[0].tolist() == pytest.approx([0, 0, 1], abs=1e-6)
    # From above onto the lid of a cylinder: tilted towards us by a quarter turn about x.
    _, normal, point = one(CYLINDER, ahead, angles=(0.0, math.pi / 2, 0.0))
    assert normal[0].tolist() == pytest.approx([0, 0, 1], abs=1e-6)
    assert abs(point[0][1].item()) == pytest.approx(1)
    # A box, turned by an eighth about y, shows an edge; beside it the two faces.
    _, normal, _ = one(BOX, [[0.05, 0.0, -1.0], [-0.05, 0.0, -1.0]], angles=(math.pi / 4, 0.0, 0.0))
    half = math.sqrt(0.5)
    assert normal.flatten().tolist() == pytest.approx([half, 0, half, -half, 0, half], abs=1e-6)
    # An ellipsoid twice as wide as deep: its implicit equation x^2 / 4 + y^2 + z^2 = 1 has the gradient (x / 4, y, z).
    distance, normal, _ = one(ELLIPSOID, [[0.25, 0.0, -1.0]], radii=(2.0, 1.0, 1.0))
    at = distance * torch.tensor([0.25, 0.0, -1.0]) - torch.tensor([0.0, 0.0, -4.0])
    expected = nn.functional.normalize(at / torch.tensor([4.0, 1.0, 1.0]), dim=0)
    assert normal[0].tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_nothing_is_seen_behind_the_camera():
    for kind in (ELLIPSOID, BOX, CYLINDER):
        assert one(kind, [[0.0, 0.0, -1.0]], centre=(0.0, 0.0, 4.0))[0].item() == FAR
    ahead = torch.tensor([[0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    wall = plane(torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([-5.0]), ahead)
    assert wall.tolist() == [[5.0, FAR]]


@pytest.mark.parametrize("kind", [ELLIPSOID, BOX, CYLINDER])
def test_normals_are_those_of_the_surface_that_is_hit(kind):
    """From the points of neighbouring rays: both differences lie in the tangent plane."""
    torch.manual_seed(0)
    centre, radii = (0.3, -0.2, -3.0), (0.9, 0.5, 0.7)
    base = torch.randn(400, 2) * 0.15
    step = 1e-3
    rays = [torch.cat([base + torch.tensor(move), -torch.ones(400, 1)], 1) for move in ((0, 0), (step, 0), (0, step))]
    points, normals, seen = [], None, torch.ones(400, dtype=torch.bool)
    for directions in rays:
        distance, normal, _ = one(kind, directions.tolist(), centre, (0.7, 0.4, 1.1), radii)
        points.append(distance.unsqueeze(-1) * directions)
        seen &= distance < FAR
        if normals is None:
            normals = normal
        seen &= (normals * normal).sum(-1) > 0.999  # on one face
    assert seen.sum() > 100
    tangents = [(point - points[0])[seen] for point in points[1:]]
    facing = (normals * rays[0]).sum(-1)[seen]
    assert (facing < 0).all()  # seen from outside
    for tangent in tangents:
        sine = (tangent * normals[seen]).sum(-1) / tangent.norm(dim=-1)
        # The chord leaves the tangent plane by half its length over the smallest radius of curvature; where the surface
        # is seen at a slant the chord is longer than the step by one over the cosine. Rounding adds 1e-3 of it.
        slant = facing.abs() / rays[0][seen].norm(dim=-1)
        assert (sine.abs() * slant).max() < 3 * step * 3 / 0.28 + 2e-3


def test_rotations_are_rotations():
    found = turned(torch.rand(20, 3).double() * 6)
    torch.testing.assert_close(found @ found.mT, torch.eye(3).double().expand(20, 3, 3))
    torch.testing.assert_close(torch.linalg.det(found), torch.ones(20).double())
    assert turned(torch.tensor([[math.pi / 2, 0, 0]]))[0] @ torch.tensor([0.0, 0.0, 1.0]) == pytest.approx(
        [1, 0, 0], abs=1e-6
    )


def test_textures_by_hand():
    points = torch.tensor([[[0.25, 0.25, 0.25], [1.25, 0.25, 0.25], [0.5, 0.5, 0.5], [0.95, 0.95, 0.95]]])
    one = torch.ones(1)
    found = {kind: texture(torch.tensor([kind]), points, one)[0].tolist() for kind in (PLAIN, CHECKERS, STRIPES, DOTS)}
    assert found[PLAIN] == [0, 0, 0, 0]
    assert found[CHECKERS] == [0, 1, 0, 0]
    assert found[STRIPES][0] == pytest.approx(0.5 + 0.5 * math.sin(2 * math.pi * 0.375), abs=1e-6)
    assert found[DOTS] == [0, 0, 1, 0]
    grid = torch.randint(-50, 50, (500, 3)).float()
    values = noise(grid)
    assert ((values >= 0) & (values <= 1)).all()
    assert 0.25 < values.std() < 0.33  # evenly spread: 0.289
    middle = noise(torch.tensor([[0.5, 0.0, 0.0]]))
    ends = noise(torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))
    assert middle.item() == pytest.approx(ends.mean().item(), abs=1e-6)


def test_a_scene_is_the_same_in_every_domain_but_for_its_textures_or_its_light():
    shown = {name: Scenes((number,), 32, seed=3).draw(torch.arange(6)) for number, name in enumerate(DOMAINS)}
    images, normals = shown["clean"]
    assert (images.dtype, images.shape, normals.shape) == (torch.uint8, (6, 3, 32, 32), (6, 3, 32, 32))
    torch.testing.assert_close(normals.norm(dim=1), torch.ones(6, 32, 32))
    rays = nn.functional.normalize(torch.stack([*torch.meshgrid(
        *[(torch.arange(32) + 0.5) / 32 - 0.5] * 2, indexing="xy"), torch.full((32, 32), -1.0)]), dim=0)  # fmt: skip
    rays[1] *= -1
    assert ((normals * rays).sum(1) < 1e-3).all()  # every surface is seen from its front
    for name in DOMAINS[1:]:
        assert torch.equal(shown[name][1], normals)
        assert (shown[name][0].float() - images.float()).abs().mean() > 5
    again = Scenes((0,), 32, seed=3).draw(torch.tensor([4]))
    apart = (again[0][0].float() - images[4].float()).abs()  # sums are rounded in another order, at edges it shows
    assert (apart > 1).float().mean() < 1e-3
    torch.testing.assert_close(again[1][0], normals[4], rtol=1e-5, atol=1e-5)
    assert not torch.equal(Scenes((0,), 32, seed=4).draw(torch.tensor([4]))[0][0], images[4])
    assert len({tuple(n.round(decimals=3).tolist()) for n in normals[0].flatten(1).T}) > 20  # planes and curved solids


def test_measures_by_hand():
    up = torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1)
    for degrees in (0.0, 1e-4, 11.0, 30.0, 90.0, 180.0):
        tilted = torch.tensor(
            [math.sin(math.radians(degrees)), 0.0, math.cos(math.radians(degrees))], dtype=torch.float64
        )
        found = angles(7 * tilted.view(1, 3, 1, 1), up)
        assert found.item() == pytest.approx(degrees, rel=1e-9, abs=1e-9)
    for none in (0.0, math.nan, math.inf):
        assert angles(torch.tensor([0.0, 0.0, none]).view(1, 3, 1, 1), up).item() == 180
    assert measures(torch.tensor([40.0, 10.0, 20.0, 0.0]))["median"] == 15
    assert measures(torch.zeros(2**24 + 1))["median"] == 0
    found = measures(torch.tensor([0.0, 10.0, 20.0, 25.0, 45.0]))
    assert found == {
        "within 11.25": pytest.approx(40), "within 22.5": pytest.approx(60), "within 30": pytest.approx(80),
        "mean": pytest.approx(20), "median": pytest.approx(20),
    }  # fmt: skip


def test_measured_is_over_all_pictures_and_leaves_the_mode():
    class Up(nn.Module):
        def forward(self, images):
            return torch.tensor([0.0, 0.0, 2.0]).view(1, 3, 1, 1).expand(len(images), 3, 2, 2)

    model, images = Up().train(), torch.zeros(40, 3, 2, 2)
    normals = torch.zeros(40, 3, 2, 2)
    normals[:30, 2], normals[30:, 0] = 1, 1
    found = measured(model, images, normals, torch.device("cpu"))
    assert (found["within 11.25"], found["mean"], found["median"]) == (pytest.approx(75), pytest.approx(22.5), 0)
    assert model.training


def test_the_untrained_network_says_towards_the_camera():
    sizes = {"train_scenes": 4, "test_scenes": 2, "validation_scenes": 2, "pretrain_scenes": 4}
    task = NormalsTask(size=32, **sizes, device=torch.device("cpu"))
    model = task.new_model().eval()
    images, normals = task.parts["finetune"].draw(torch.arange(2), torch.Generator())
    outputs = model(images)
    torch.testing.assert_close(outputs, torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1).expand_as(outputs))
    expected = 1 - normals[:, 2].mean()
    torch.testing.assert_close(task.loss(outputs, normals), expected)
    other = NormalsTask(size=32, **sizes, device=torch.device("cpu"), seed=1)
    assert task.fingerprint() != other.fingerprint()
    assert task.fingerprint() == NormalsTask(size=32, **sizes, device=torch.device("cpu")).fingerprint()


def test_a_stopped_run_ends_as_a_whole_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny = ("--size", "32", "--scenes", "8", "--pretrain-scenes", "8", "--validation-scenes", "4", "--test-scenes", "4")
    tiny += ("--batch-size", "4", "--epochs", "2", "--anchor-epochs", "1", "--seeds", "0", "--device", "cpu")
    arguments = (*tiny, "--method", "adamw", "ftp", "--lrs", "1e-4", "1e-3")
    assert study.main([*arguments, "--out", "runs/whole"]) == 0, capsys.readouterr().err

    def stop(name, step):
        if (name, step) == ("ftp, seed 0", 3):
            raise KeyboardInterrupt

    assert study.main([*arguments, "--out", "runs/broken"], on_step=stop) == 130
    assert study.main([*arguments, "--out", "runs/broken"]) == 0
    assert numbers(Path("runs/broken")) == numbers(Path("runs/whole"))
    content = json.loads(Path("runs/whole/metrics.json").read_text())
    result = content["results"]["ftp-seed0"]
    assert result["ood"] == pytest.approx((result["textures"] + result["lights"]) / 2)
    assert len(result["scores"]) == 5 * (3 + 20)
    report = Path("runs/whole/report.md").read_text()
    assert "| method | ID: clean | other textures | other lights | OOD mean | corrupted mean |" in report
    assert "| method | clean, within 22.5 | clean, within 30 | clean, mean | clean, median | textures, within" in report
    assert "![Test scenes in every domain" in report


def test_a_diverged_training_is_reported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny = ("--size", "32", "--scenes", "4", "--pretrain-scenes", "4", "--validation-scenes", "4", "--test-scenes", "1")
    tiny += ("--batch-size", "4", "--epochs", "2", "--anchor-epochs", "1", "--seeds", "0", "--device", "cpu")
    assert study.main([*tiny, "--method", "adamw", "--lr", "1e30", "--out", "runs/lost"]) == 0
    result = json.loads(Path("runs/lost/metrics.json").read_text())["results"]["adamw-seed0"]
    assert (result["diverged"], result["id"], result["scores"]["clean, mean"]) == (True, 0, 180)


def test_options_that_cannot_be_used(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for arguments, message in (
        (("--size", "40"), "--size 40: must be a multiple of 32"),
        (("--scenes", "0"), "--scenes 0: must be an integer of at least 1"),
        (("--method", "lora"), "--method lora: is for networks of linear layers"),
    ):
        assert study.main(list(arguments)) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--labels", "--validation"])
def test_what_would_have_no_effect_is_no_option(option, capsys):
    with pytest.raises(SystemExit):
        study.STUDY.read([option, "0.5"])
    assert option in capsys.readouterr().err
