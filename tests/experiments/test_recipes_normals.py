"""The recipe of surface normals: files, mirror images, loss and scores by hand, and a network that learns them."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("timm")
pytest.importorskip("torchmetrics")
pytest.importorskip("torchvision")

from experiments.common.errors import InputError
from experiments.recipes.benchmark import find
from experiments.recipes.evaluate import loss, score
from experiments.recipes.examples import Examples
from experiments.recipes.meters import MEAN_ERROR, NORMALS
from experiments.recipes.normals import directions, mirrored, read_normals
from experiments.recipes.pictures import batches
from experiments.recipes.run import errors_of, summed_up

from ..support import tiny_datasets as tiny
from ..support.tiny_recipes import Fixed, finished, prepare, small

HALF = math.sqrt(0.5)
# In 8 bits the components of a unit vector are wrong by half a level: 1 / 255.
ROUNDING = 1 / 255


def png(file: Path, *pixels: tuple[int, int, int]) -> Path:
    """One row."""
    tiny.mask(file, np.array([pixels]))
    return file


def turned(*degrees: float) -> torch.Tensor:
    """Outputs [1, 3, 1, w] that are 3 long, each so many degrees from the z axis."""
    angles = torch.tensor(degrees).deg2rad()
    return 3 * torch.stack([angles.sin(), torch.zeros_like(angles), angles.cos()])[None, :, None]


def towards_us(*there: bool) -> torch.Tensor:
    """Normals [1, 3, 1, w] along z; False: none."""
    return torch.tensor([[0.0, 0, there_is] for there_is in there]).T[None, :, None]


def test_what_a_pixel_of_a_file_means(tmp_path):
    """The components in the order of the channels; black and both middle greys are none."""
    meant = {
        (255, 128, 128): (1, 0, 0), (0, 127, 127): (-1, 0, 0), (128, 255, 127): (0, 1, 0), (127, 127, 255): (0, 0, 1),
        (218, 128, 218): (HALF, 0, HALF), (192, 128, 128): (1, 0, 0),  # half as long: the direction counts
        (0, 0, 0): (0, 0, 0), (127, 127, 127): (0, 0, 0), (128, 128, 128): (0, 0, 0), (128, 127, 128): (0, 0, 0),
    }  # fmt: skip
    found = directions(read_normals(png(tmp_path / "a.png", *meant)))
    assert found.shape == (3, 1, len(meant))
    expected = torch.tensor(list(meant.values()), dtype=torch.float32).T[:, None]
    # the shorter vector's components are twice as wrong, once normalised
    torch.testing.assert_close(found, expected, atol=2 * ROUNDING, rtol=0)
    torch.testing.assert_close(found.norm(dim=0)[:, :6], torch.ones(1, 6))
    assert torch.equal(found[..., 6:], torch.zeros(3, 1, 4))


def test_a_mirror_image_turns_the_x_axis():
    normals = torch.tensor([[[0.6, 0.0]], [[0.0, 0.8]], [[0.8, -0.6]]])
    assert torch.equal(mirrored(normals), torch.tensor([[[0.0, -0.6]], [[0.8, 0.0]], [[-0.6, 0.8]]]))


def test_picture_and_normals_flip_together(tmp_path):
    """The left half is black and looks to the left, the right one is white and up; a mirrored left looks right."""
    recipe = small("surface-normals")
    examples = find(tiny.surface_normals(tmp_path), recipe).stages[0].examples
    picture = np.zeros((40, 40, 3), dtype=np.uint8)
    picture[:, 20:] = 255
    normals = np.full((40, 40, 3), (0, 128, 128), dtype=np.uint8)
    normals[:, 20:] = (128, 255, 128)
    normals[:10] = 0
    for file, target in zip(examples.files, examples.targets, strict=True):
        Image.fromarray(picture).save(tmp_path / file, quality=95)
        tiny.mask(tmp_path / target, normals)
    seen = set()
    for seed in range(4):
        for images, targets in batches(examples, recipe, 0, seed):
            assert targets.shape == (4, 3, 32, 32)
            assert torch.equal(targets[:, :, :8], torch.zeros(4, 3, 8, 32))  # a quarter of the rows
            for image, target in zip(images, targets[:, :, 8:].round(), strict=True):
                black = image[0, 8:] < 128
                dark, bright = (target[:, where].unique(dim=1).T.tolist() for where in (black, ~black))
                assert bright == [[0, 1, 0]]
                seen.add((bool(black[0, 0]), *(tuple(one) for one in dark)))
    assert seen == {(True, (-1, 0, 0)), (False, (1, 0, 0))}


def test_normals_are_not_mixed_where_a_picture_shrinks(tmp_path):
    recipe = small("surface-normals")
    examples = find(tiny.surface_normals(tmp_path), recipe).stages[0].examples
    stripes = np.zeros((40, 40, 3), dtype=np.uint8)
    stripes[:, ::3], stripes[:, 1::3] = (255, 128, 128), (128, 128, 255)
    tiny.mask(tmp_path / examples.targets[0], stripes)
    _, targets = next(iter(batches(examples, recipe, 0)))
    assert len(targets[0].flatten(1).unique(dim=1).T) == 3  # two directions and none


def test_the_loss_by_hand():
    """Cosines 1, 1/2 and -1; the pixel without a normal counts nothing and learns nothing."""
    outputs = turned(0, 60, 180, 90).requires_grad_()
    value = loss(outputs, towards_us(True, True, True, False), None)
    assert value.item() == pytest.approx(1 - (1 + 0.5 - 1) / 3)
    value.backward()
    assert torch.equal(outputs.grad[..., 3], torch.zeros(1, 3, 1))
    # d(1 - cos)/d(angle) = sin(60 degrees), for an output of length 3, in a mean of three
    assert outputs.grad[..., 1].norm().item() == pytest.approx(math.sin(math.pi / 3) / 3 / 3, rel=1e-5)

    outputs = turned(10, 20).requires_grad_()
    nothing = loss(outputs, towards_us(False, False), None)
    nothing.backward()
    assert nothing.item() == 0
    assert torch.equal(outputs.grad, torch.zeros_like(outputs))


def test_the_scores_by_hand_over_two_batches():
    """Two of four pixels within 11.25 degrees; the mean is over pixels, not over batches."""
    outputs = turned(0, 10, 40, 5), turned(90, 2, 3, 4)
    truth = towards_us(True, True, True, False), towards_us(True, False, False, False)
    read = [(torch.zeros(1, 3, 1, 4, dtype=torch.uint8), normals) for normals in truth]
    some = Examples(Path(), ("a", "b"), ("a", "b"), normals=True)
    assert score(Fixed(*outputs), read, some, NORMALS, 3) == {
        NORMALS: pytest.approx(50),
        MEAN_ERROR: pytest.approx((0 + 10 + 40 + 90) / 4, abs=1e-4),  # float32 outputs, in degrees
    }


def test_the_tables_by_hand(tmp_path):
    benchmark = find(tiny.surface_normals(tmp_path), small("surface-normals"))
    tests = list(benchmark.stages[0].tests)
    assert len(tests) == 21
    scores = dict.fromkeys(tests, 50.0) | {f"{test}, {MEAN_ERROR}": 20.0 for test in tests}
    scores |= {"fog 1": 70.0, f"fog 1, {MEAN_ERROR}": 10.0, f"clean, {MEAN_ERROR}": 5.0}
    assert summed_up(benchmark, [scores])["fog"] == 54
    (title, errors), *others = errors_of(benchmark, scores).items()
    assert (title, others) == (MEAN_ERROR, [])
    assert errors == {
        "ID: clean": 5, "fog": 18, "defocus blur": 20, "gaussian noise": 20, "brightness": 20, "OOD mean": 19.5,
    }  # fmt: skip


def test_a_network_learns_which_way_the_colours_look(tmp_path):
    """Three normals, 60 degrees and more apart; a report has a table for each measure."""
    recipe = small("surface-normals", epochs=15, plain_lr=1e-2)
    setting = prepare(recipe, tmp_path, methods=("finetune",))
    result = finished(recipe, setting)["results"]["finetune"]
    assert result["losses"][-1] < result["losses"][0] / 4
    assert result["columns"]["ID: clean"] == 100
    assert result["errors"][MEAN_ERROR]["ID: clean"] < 11.25
    report = (setting.out / "report.md").read_text()
    assert f"{NORMALS} in %" in report
    assert f"{MEAN_ERROR.capitalize()}; lower is better:" in report
    for columns in (result["columns"], result["errors"][MEAN_ERROR]):
        assert f"| finetune | {' | '.join(f'{value:.1f}' for value in columns.values())} |" in report


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.full((40, 40), 128), r"normals .*a.png have the mode L; save them as 8-bit RGB"),
        (np.full((40, 40, 4), 128), "have the mode RGBA"),
        (np.full((40, 40, 3), 255), r"have a pixel \(255, 255, 255\), which is no unit vector"),
        (np.full((40, 40, 3), (0, 0, 3)), r"have a pixel \(0, 0, 3\), which is no unit vector"),  # a class
        (np.full((40, 39, 3), (128, 128, 255)), r"has \(40, 40\) pixels and its normals .*a.png \(39, 40\)"),
    ],
)
def test_wrong_files_of_normals(values, said, tmp_path):
    recipe = small("surface-normals")
    examples = find(tiny.surface_normals(tmp_path), recipe).stages[0].examples
    tiny.mask(tmp_path / examples.targets[0], values)
    with pytest.raises(InputError, match=said):
        list(batches(examples, recipe, 0))


@pytest.mark.parametrize("none", [0, 127, 128])
@pytest.mark.parametrize(("part", "names"), [("train", "abc"), ("val", "ef")])
def test_lists_without_any_normal_are_refused(part, names, none, tmp_path):
    """A picture without any is not: there are such, d among them."""
    recipe = small("surface-normals")
    tiny.surface_normals(tmp_path)
    for name in names:
        find(tmp_path, recipe)
        tiny.mask(tmp_path / "normals_masked" / f"{name}.png", np.full((40, 40, 3), none))
    with pytest.raises(InputError, match=f"no picture of {part}.txt has a pixel with a normal .*\n.*\n.*ImageSets"):
        find(tmp_path, recipe)
