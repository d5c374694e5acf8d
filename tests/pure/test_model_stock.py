"""Model Stock: the ratio by hand, limits, whole state_dicts."""

from __future__ import annotations

import math

import pytest
import torch

import hyperopt_ftp as hft


def at_angle(cos: float, count: int, size: int = 40) -> list[torch.Tensor]:
    """Unit vectors, any two of which have this cosine: a common part and one of each one's own."""
    basis = torch.linalg.qr(torch.randn(size, count + 1, dtype=torch.float64, generator=torch.manual_seed(0)))[0]
    return [math.sqrt(cos) * basis[:, 0] + math.sqrt(1 - cos) * basis[:, i + 1] for i in range(count)]


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("cos", [0.1, 0.5, 0.9])
def test_the_merged_model_is_the_foot_of_the_perpendicular_from_the_centre(cos, count):
    """The paper's reason for t: models lie on a sphere around a centre, and W is the point nearest to it on the plane
    through the models and the anchor. With equal lengths and angles the centre is the common part."""
    w0 = torch.randn(40, dtype=torch.float64)
    away = at_angle(cos, count)
    merged, t = hft.model_stock([{"w": w0 + a} for a in away], {"w": w0})
    assert t["w"].item() == pytest.approx(count * cos / ((count - 1) * cos + 1), rel=1e-12)
    basis = torch.stack(away, 1)
    centre = math.sqrt(cos) * torch.linalg.qr(torch.randn(40, count + 1, dtype=torch.float64,
        generator=torch.manual_seed(0)))[0][:, 0]  # fmt: skip
    nearest = basis @ torch.linalg.lstsq(basis, centre[:, None]).solution[:, 0]
    torch.testing.assert_close(merged["w"] - w0, nearest, rtol=1e-10, atol=1e-12)


def test_equal_models_are_their_own_merge_and_opposite_ones_the_anchor():
    w0, step = torch.randn(6, dtype=torch.float64), torch.ones(6, dtype=torch.float64)
    merged, t = hft.model_stock([{"w": w0 + step}] * 3, {"w": w0})
    assert t["w"].item() == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(merged["w"], w0 + step)
    for other in (-step, -0.3 * step, torch.zeros_like(step)):
        merged, t = hft.model_stock([{"w": w0 + step}, {"w": w0 + other}], {"w": w0})
        assert t["w"] == 0
        assert torch.equal(merged["w"], w0)


def test_the_rest_of_a_state_dict():
    """A new head is the mean; counts are the first model's; tensors have ratios of their own; dtypes stay."""
    w0 = {"a": torch.zeros(2), "b": torch.zeros(2, dtype=torch.bfloat16), "n": torch.tensor(0)}
    one = {"a": torch.tensor([1.0, 0.0]), "b": torch.ones(2, dtype=torch.bfloat16), "n": torch.tensor(3)}
    two = {"a": torch.tensor([1.0, 1.0]), "b": torch.ones(2, dtype=torch.bfloat16), "n": torch.tensor(5)}
    one["head"], two["head"] = torch.tensor([1.0]), torch.tensor([2.0])
    merged, t = hft.model_stock([one, two], w0)
    assert t.keys() == {"a", "b"}
    assert merged["head"].item() == 1.5
    assert merged["n"] == 3
    assert merged["b"].dtype == torch.bfloat16
    assert torch.equal(merged["b"], one["b"])
    cos = 1 / math.sqrt(2)
    torch.testing.assert_close(merged["a"], 2 * cos / (cos + 1) * torch.tensor([1.0, 0.5]))
    assert one["a"].tolist() == [1, 0]


def test_the_first_model_gives_the_precision_to_all():
    w0 = {"w": torch.zeros(2)}
    one, two = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])
    expected = hft.model_stock([{"w": one.double()}, {"w": two.double()}], w0)[0]["w"]
    for first, second in ((torch.float64, torch.float32), (torch.float32, torch.float64)):
        found = hft.model_stock([{"w": one.to(first)}, {"w": two.to(second)}], w0)[0]["w"]
        assert found.dtype == first
        torch.testing.assert_close(found, expected.to(first), rtol=4 * torch.finfo(first).eps, atol=0)
