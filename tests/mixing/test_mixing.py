"""WiSE-FT, LiNeS, Model Stock and Mixout over whole state_dicts."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import hyperopt_ftp as hft

from ..support.draws import dtypes, normal, seeds, several

F64 = torch.float64


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2 * 4, 3)).double()


def pair(dtype: torch.dtype = F64) -> tuple[dict, dict]:
    """Fine-tuned and pre-trained, with other statistics and counts."""
    model = network()
    start = copy.deepcopy(model.state_dict())
    for p in model.parameters():
        p.data += torch.randn_like(p)
    for _ in range(3):
        model(torch.randn(8, 1, 4, 4, dtype=F64) * 3 + 1)
    tuned, start = (
        {name: w.to(dtype) if w.is_floating_point() else w for name, w in x.items()}
        for x in (model.state_dict(), start)
    )
    return tuned, start


# -- WiSE-FT and LiNeS ------------------------------------------------------------------------------------------------

LAYERS = ["0", "1", "3"]
shares = st.floats(0, 1)


def ends_of(seed: int, sizes: list[tuple[int, ...]], dtype: torch.dtype = F64) -> tuple[dict, dict]:
    """Weights and an anchor of layers by number, and a count."""
    w, w0 = ({str(i): x.to(dtype) for i, x in enumerate(normal(seed + k, sizes))} for k in (0, 500))
    return w | {"count": torch.tensor(3)}, w0 | {"count": torch.tensor(0)}


@given(seed=seeds, sizes=several, a=shares, b=shares, dtype=dtypes)
def test_a_mixture_is_that_of_its_numbers_and_counts_stay(seed, sizes, a, b, dtype):
    """One share for all, or shares on a line over layers; lines with beta 0 is wise; shapes and dtypes are kept."""
    w, w0 = ends_of(seed, sizes, dtype)
    layers = [str(i) for i in range(len(sizes))]
    once, along, flat = (
        hft.wise(w, w0, strength=a), hft.lines(w, w0, layers, alpha=a, beta=b) if len(layers) > 1 else None,
        hft.lines(w, w0, layers, alpha=1 - a, beta=0.0) if len(layers) > 1 else None,
    )  # fmt: skip
    # Computed in working precision, then rounded to the dtype of the weights.
    eps = 8 * torch.finfo(dtype).eps
    for i, name in enumerate(layers):
        far, near = w[name].double(), w0[name].double()
        mixed = {0: (once, 1 - a)} | ({1: (along, a + b * i / (len(layers) - 1)), 2: (flat, 1 - a)} if along else {})
        for found, share in mixed.values():
            assert (found[name].shape, found[name].dtype) == (w[name].shape, dtype)
            size = 1 + far.abs() + near.abs()
            assert ((found[name].double() - (near + share * (far - near))).abs() <= eps * size).all()
    assert once["count"] == 3


@given(seed=seeds, sizes=several, a=shares, b=shares)
def test_mixing_twice_is_mixing_once_and_the_two_ends_may_change_places(seed, sizes, a, b):
    w, w0 = ends_of(seed, sizes)
    twice, once = hft.wise(hft.wise(w, w0, a), w0, b), hft.wise(w, w0, 1 - (1 - a) * (1 - b))
    back = hft.wise(w0, w, 1 - a)
    for name in w.keys() - {"count"}:
        # Two lerps of three roundings each, on numbers below 5.
        torch.testing.assert_close(twice[name], once[name], rtol=0, atol=1e-14)
        torch.testing.assert_close(back[name], hft.wise(w, w0, a)[name], rtol=0, atol=1e-14)


def test_a_layer_of_two_and_statistics_are_mixed_too():
    tuned, start = pair()
    mixed = hft.lines(tuned, start, [["0", "1"], "3"], alpha=0.2, beta=0.6)
    for name, w in tuned.items():
        share = 0.8 if name[0] == "3" else 0.2
        want = start[name] + share * (w - start[name]) if w.is_floating_point() else w
        torch.testing.assert_close(mixed[name], want, rtol=1e-14, atol=1e-15)


#: By the share that is kept.
ENDS = {
    "wise": lambda w, w0, share: hft.wise(w, w0, strength=1 - share),
    "lines": lambda w, w0, share: hft.lines(w, w0, LAYERS, alpha=share, beta=0.0),
}


@given(mix=st.sampled_from([*ENDS.values()]), dtype=dtypes)
def test_both_ends_are_exact_and_nothing_is_shared(mix, dtype):
    tuned, start = pair(dtype)
    free, fixed = mix(tuned, start, 1.0), mix(tuned, start, 0.0)
    for name, w in tuned.items():
        assert torch.equal(free[name], w)
        assert torch.equal(fixed[name], start[name] if w.is_floating_point() else w)
        assert free[name].dtype == fixed[name].dtype == w.dtype
        assert free[name].data_ptr() != w.data_ptr()


def test_a_share_for_each_name_what_is_in_no_layer_and_a_new_head():
    tuned, start = pair()
    headless = {name: w for name, w in start.items() if not name.startswith("3.")}
    mixed = hft.wise(tuned, headless, strength={"0.weight": 1.0})
    assert torch.equal(mixed["0.weight"], start["0.weight"])
    for name in tuned.keys() - {"0.weight"}:
        assert torch.equal(mixed[name], tuned[name])
    scaled = hft.lines(tuned, headless, ["0", "1.weight"], alpha=0.25, beta=0.75)  # "1.bias" as the first layer
    torch.testing.assert_close(scaled["1.bias"], start["1.bias"] + 0.25 * (tuned["1.bias"] - start["1.bias"]))
    assert torch.equal(scaled["1.weight"], tuned["1.weight"])
    assert torch.equal(scaled["3.weight"], tuned["3.weight"])
    assert scaled["3.weight"].data_ptr() != tuned["3.weight"].data_ptr()


def test_derivatives_and_sweeps_of_lines_are_those_of_the_formula():
    """d W / d alpha of layer k of L is W - W0, d W / d beta is (k - 1) / (L - 1) of it."""
    tuned, start = pair()
    numbers = torch.tensor([0.2, 0.6], dtype=F64)

    def mixed(numbers):
        return hft.lines(tuned, start, LAYERS, alpha=numbers[0], beta=numbers[1])["1.weight"]

    way = tuned["1.weight"] - start["1.weight"]
    torch.testing.assert_close(torch.func.jacrev(mixed)(numbers), torch.stack([way, way / 2], -1), rtol=1e-14, atol=0)
    swept = torch.func.vmap(mixed)(torch.stack([numbers, numbers / 2]))
    torch.testing.assert_close(swept[1], mixed(numbers / 2))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_result_is_where_the_weights_are(share):
    tuned, start = pair()
    elsewhere = {name: w.to("meta") for name, w in tuned.items()}
    found = hft.lines(elsewhere, start, LAYERS, alpha=share, beta=0.0)
    assert {w.device.type for w in found.values()} == {"meta"}


def test_learned_shares_find_the_mixture_that_made_the_targets():
    """Targets of a mixture with a share for each tensor: its loss is 0, and the shares are found again."""
    tuned, start = pair()
    model = network().eval()
    buffers = [name for name, _ in model.named_buffers()]
    names = [name for name, _ in model.named_parameters()]
    true = dict(zip(names, (0.9, 0.1, 0.7, 0.3, 0.2, 0.6), strict=True))
    true |= {"1.running_mean": 0.5, "1.running_var": 0.5}  # the mean of their module's, 0.7 and 0.3
    x = torch.randn(64, 1, 4, 4, dtype=F64)
    y = torch.func.functional_call(model, hft.wise(tuned, start, strength=true), (x,))

    def outer_loss(weights, batch):
        return (torch.func.functional_call(model, weights, (batch,)) - y).square().mean()

    given = {n: w.requires_grad_() if n in names else w for n, w in tuned.items()}
    mixed, shares = hft.learned_wise(given, start, outer_loss, [x] * 400, statistics=buffers, strength_lr=0.03)
    assert not any(w.requires_grad for w in (*mixed.values(), *shares.values()))  # no graph from batch to batch
    assert outer_loss(mixed, x) < 1e-4 < 1e-2 < outer_loss(tuned, x)
    assert shares.keys() == true.keys()
    for name, share in true.items():
        assert shares[name] == pytest.approx(share, abs=0.05), name
        torch.testing.assert_close(mixed[name], hft.wise(tuned, start, strength=shares)[name].detach())
    assert mixed["1.num_batches_tracked"] == 3


def test_statistics_follow_their_own_module_and_none_whose_name_begins_alike():
    names = ["bn1.weight", "bn10.weight", "bn1.inner.weight"]  # to the anchor, to the weights, to the weights
    buffers = ["bn1.running_mean", "bn10.running_mean", "bn1.inner.running_mean"]
    w, w0 = ({name: torch.tensor([x]) for name in names + buffers} for x in (1.0, 0.0))

    def outer_loss(p, _):
        return (p["bn1.weight"] - p["bn10.weight"] - p["bn1.inner.weight"]).sum()

    _, shares = hft.learned_wise(w, w0, outer_loss, [0] * 5, statistics=buffers, strength_lr=0.1)
    assert shares["bn1.weight"] > 0.9 > 0.1 > shares["bn10.weight"]
    for name, buffer in zip(names, buffers, strict=True):
        assert shares[buffer] == shares[name]


def test_learned_shares_stay_between_the_two():
    w, w0 = {"w": torch.tensor([3.0])}, {"w": torch.tensor([1.0])}
    for target, share in ((9.0, 0.0), (-9.0, 1.0)):
        _, shares = hft.learned_wise(w, w0, lambda p, x: ((p["w"] - x) ** 2).sum(), [target] * 100, strength_lr=0.1)
        assert shares["w"] == share


def test_entries_that_cannot_be_mixed_stay():
    z, mask = torch.tensor([1j, 2.0]), torch.tensor([0.0, -torch.inf])  # rotations of an attention
    w, w0 = {"mask": mask, "z": z, "_extra_state": {"a": 1}}, {"mask": mask.clone(), "z": z, "_extra_state": {}}
    for mixed in (hft.wise(w, w0), hft.learned_wise(w, w0, lambda p, x: p["mask"][0] * x, [1.0])[0]):
        assert torch.equal(mixed["mask"], mask)
        assert torch.equal(mixed["z"], z)
        assert mixed["_extra_state"] == {"a": 1}


def test_tensors_without_memory_are_not_taken_for_tied():
    w = {name: torch.empty(2, device="meta") for name in "ab"}
    assert hft.wise(w, {name: torch.empty(2, device="meta") for name in w}, {"a": 0.1, "b": 0.9}).keys() == w.keys()


def test_a_whole_checkpoint_is_refused_and_not_left_unmixed():
    w, w0 = pair()
    with pytest.raises(ValueError, match="'model' is a dict of tensors, as in a checkpoint: give weights"):
        hft.wise({"model": w, "epoch": 3}, {"model": w0, "epoch": 0})


def test_tied_weights_are_mixed_alike_under_both_names():
    """A module that is given two mixtures of one tensor would keep the one that it loads last."""
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    w0 = copy.deepcopy(net.state_dict())
    net[0].weight.data += 1
    w = net.state_dict()
    assert torch.equal(hft.wise(w, w0, 0.25)["1.weight"], hft.wise(w, w0, 0.25)["0.weight"])
    hft.lines(w, w0, ["0", "1"], alpha=0.5, beta=0.0)
    torch.func.vmap(lambda s: hft.wise(w, w0, s))(torch.tensor([0.0, 0.5]))
    torch.func.vmap(lambda x: hft.wise(w, {**w0, "0.weight": x, "1.weight": x.clone()}))(torch.zeros(2, 3, 3))
    short = {name: w0[name] for name, _ in net.named_parameters()}
    for mix in (
        lambda: hft.model_stock([w, copy.deepcopy(w)], short),
        lambda: hft.wise(w, short),
        lambda: hft.lines(w, w0, ["0", "1"]),
        lambda: hft.wise(w, w0, {"0.weight": 1}),
        lambda: hft.wise(w, {**w0, "1.weight": w0["1.weight"] + 1}),
    ):
        with pytest.raises(ValueError, match=r"'0.weight' and '1.weight' are one tensor \(tied weights\)"):
            mix()


def test_tied_weights_learn_one_share_by_the_derivative_of_both_places():
    """As one tensor that the loss reads twice."""
    w, w0 = torch.tensor([3.0, 1.0]), torch.tensor([1.0, 2.0])
    read = lambda a, b, x: ((a - x) ** 2 + (b - 2 * x).abs() * a).sum()  # noqa: E731
    batches = [torch.tensor(x) for x in (1.5, 0.3, 2.0)] * 10
    twice = hft.learned_wise(
        {"a": w, "b": w}, {"a": w0, "b": w0.clone()}, lambda p, x: read(p["a"], p["b"], x), batches, strength_lr=0.1
    )
    once = hft.learned_wise({"a": w}, {"a": w0}, lambda p, x: read(p["a"], p["a"], x), batches, strength_lr=0.1)
    for alone, both in zip(once, twice, strict=True):
        assert both.keys() == {"a", "b"}
        assert torch.equal(both["a"], both["b"])
        assert torch.equal(both["a"], alone["a"])
    assert 0.01 < once[1]["a"] < 0.99
    seen: list[float] = []
    see = lambda p, x: seen.append(p["m.mean"].item() - p["n.mean"].item()) or p["m.w"].sum()  # noqa: E731
    mean = torch.ones(())
    net = {"m.w": w, "m.mean": mean, "n.w": w + 1, "n.mean": mean}
    far = {"m.w": w0, "m.mean": mean + 1, "n.w": w0, "n.mean": mean + 1}
    _, shares = hft.learned_wise(net, far, see, batches, statistics=["m.mean", "n.mean"])
    assert shares["m.mean"] == shares["n.mean"] == shares["m.w"] != shares["n.w"]
    assert set(seen) == {0.0}
    with pytest.raises(ValueError, match=r"'a' and 'b' are one tensor \(tied weights\)"):
        hft.learned_wise({"a": w, "b": w}, {"a": w0}, lambda p, x: p["a"].sum(), batches, strength=0.0)


@pytest.mark.parametrize("anchor", [{}, {"steps": torch.tensor(3)}])
@pytest.mark.parametrize("mix", [hft.wise, hft.mixout, lambda w, w0: hft.lines(w, w0, ["w"])])
def test_an_anchor_of_which_nothing_is_mixed_is_refused(mix, anchor):
    with pytest.raises(ValueError, match="anchor has no floating-point tensor, so nothing would be mixed"):
        mix({"w": torch.ones(2), "steps": torch.tensor(5)}, anchor)


@pytest.mark.parametrize("mix", [hft.wise, hft.mixout, lambda w, w0: hft.model_stock([w, w], w0)[0]])
def test_complex_entries_are_mixed_as_pairs_of_real_ones_and_not_left_out(mix):
    w, w0 = ({"w": x * torch.ones(2, 2, dtype=torch.complex128), "b": torch.ones(2)} for x in (2j, 1.0))
    with pytest.raises(ValueError, match="'w' is complex, give torch.view_as_real of it"):
        mix(w, w0)
    real = mix({**w, "w": torch.view_as_real(w["w"])}, {**w0, "w": torch.view_as_real(w0["w"])})
    assert not torch.equal(real["w"], torch.view_as_real(w["w"]))


@pytest.mark.parametrize("far", [torch.tensor([5, 2], dtype=torch.int8), torch.ones(2)], ids=["int8", "float"])
@pytest.mark.parametrize("mix", [hft.wise, hft.mixout, lambda w, w0: hft.model_stock([w, w], w0)[0]])
def test_quantised_entries_do_not_stay_while_their_scales_are_mixed(mix, far):
    w = {"w": torch.tensor([1, 2], dtype=torch.int8), "scale": torch.ones(1)}
    with pytest.raises(ValueError, match=r"'w' is torch.int8 and has other values .* dequantize weights"):
        mix(w, {"w": far, "scale": torch.zeros(1)})
    assert torch.equal(mix(w, {"w": w["w"].clone(), "scale": torch.zeros(1)})["w"], w["w"])
    with pytest.raises(ValueError, match=r"'w' is torch.int8 and has other values"):
        hft.model_stock([w, {**w, "w": far.to(torch.int8) + 3}], {"scale": torch.zeros(1)})


def test_entries_that_are_as_in_the_anchor_have_derivatives_too():
    """As where training begins at the anchor, or never touches a row of an embedding."""
    w, w0 = (torch.tensor([1.0, x], dtype=F64, requires_grad=True) for x in (2.5, 2.0))
    slopes = torch.autograd.grad(hft.wise({"w": w}, {"w": w0}, 0.25)["w"].sum(), (w, w0))
    assert [x.tolist() for x in slopes] == [[0.75, 0.75], [0.25, 0.25]]


def test_a_module_in_train_mode_leaves_the_weights_that_were_given():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).double()
    w = copy.deepcopy(net.state_dict())
    w0 = {"0.weight": w["0.weight"] + 1}
    before = copy.deepcopy(w)

    def loss(p, x):
        return torch.func.functional_call(net, p, (x,)).square().sum()

    mixed, _ = hft.learned_wise(w, w0, loss, [torch.randn(4, 2, dtype=F64)] * 3)
    for name, x in before.items():
        assert torch.equal(w[name], x), name
        assert name in w0 or torch.equal(mixed[name], x), name


# -- Model Stock ------------------------------------------------------------------------------------------------------


@given(cos=st.floats(0.05, 0.95), count=st.integers(2, 6), seed=seeds)
def test_the_merged_model_is_the_foot_of_the_perpendicular_from_the_centre(cos, count, seed):
    """The paper's reason for t: models lie on a sphere around a centre, and W is the point nearest to it on the plane
    through the models and the anchor. With equal lengths and angles the centre is the common part."""
    w0, ways = normal(seed, [(40,), (40, count + 1)])
    basis = torch.linalg.qr(ways)[0]
    centre = math.sqrt(cos) * basis[:, 0]
    away = [centre + math.sqrt(1 - cos) * basis[:, i + 1] for i in range(count)]  # of this cosine, any two
    merged, t = hft.model_stock([{"w": w0 + a} for a in away], {"w": w0})
    assert t["w"].item() == pytest.approx(count * cos / ((count - 1) * cos + 1), rel=1e-12)
    plane = torch.stack(away, 1)
    nearest = plane @ torch.linalg.lstsq(plane, centre[:, None]).solution[:, 0]
    torch.testing.assert_close(merged["w"] - w0, nearest, rtol=1e-10, atol=1e-12)


@given(seed=seeds, count=st.integers(2, 4), order=st.randoms(use_true_random=False), scale=st.floats(0.1, 10))
def test_a_merge_does_not_depend_on_the_order_and_follows_a_scale_of_all_ways(seed, count, order, scale):
    w0, *ways = normal(seed, [(6,)] * (count + 2))
    ways = [ways[0] + way for way in ways[1:]]  # with a common part
    merged, t = hft.model_stock([{"w": w0 + way} for way in ways], {"w": w0})
    order.shuffle(ways)
    again, other = hft.model_stock([{"w": w0 + scale * way} for way in ways], {"w": w0})
    # W0 + s d - W0 loses 1e-16 * |W0| / (s |d|) of d: at most 1e-14, and in a cosine no more.
    torch.testing.assert_close(other["w"], t["w"], rtol=0, atol=1e-12)
    torch.testing.assert_close(again["w"] - w0, scale * (merged["w"] - w0), rtol=0, atol=1e-11)


def test_equal_models_are_their_own_merge_and_opposite_ones_the_anchor():
    w0, step = torch.randn(6, dtype=F64), torch.ones(6, dtype=F64)
    merged, t = hft.model_stock([{"w": w0 + step}] * 3, {"w": w0})
    assert t["w"].item() == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(merged["w"], w0 + step)
    for other in (-step, -0.3 * step, torch.zeros_like(step)):
        merged, t = hft.model_stock([{"w": w0 + step}, {"w": w0 + other}], {"w": w0})
        assert t["w"] == 0
        assert torch.equal(merged["w"], w0)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_the_ratio_of_float32_is_that_of_directions_alone(size):
    """The square of such a size is 0 or infinite."""
    ways = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    (_, want), (_, t) = (hft.model_stock([{"w": s * w} for w in ways], {"w": torch.zeros(2)}) for s in (1.0, size))
    torch.testing.assert_close(t["w"], want["w"], rtol=1e-6, atol=0)
    half = math.sqrt(size)
    low = [{"lora_A": half * w.reshape(1, 2), "lora_B": half * torch.ones(3, 1)} for w in ways]
    torch.testing.assert_close(hft.model_stock(low, "zero")[1]["lora_B"], want["w"], rtol=1e-6, atol=0)


def test_the_rest_of_a_state_dict():
    """A new head is the mean; counts are the first model's; tensors have ratios of their own; dtypes stay."""
    b = torch.ones(2, dtype=torch.bfloat16)
    w0 = {"a": torch.zeros(2), "b": 0 * b, "n": torch.tensor(0), "none": torch.zeros(0, 3)}
    one = {**w0, "a": torch.tensor([1.0, 0.0]), "b": b, "n": torch.tensor(3), "head": torch.tensor([1.0])}
    two = {**w0, "a": torch.tensor([1.0, 1.0]), "b": b, "n": torch.tensor(5), "head": torch.tensor([2.0])}
    merged, t = hft.model_stock([one, two], w0)
    assert t.keys() == {"a", "b", "none"}
    assert merged["none"].shape == (0, 3)
    assert (merged["head"].item(), merged["n"], merged["b"].dtype) == (1.5, 3, torch.bfloat16)
    assert torch.equal(merged["b"], b)
    cos = 1 / math.sqrt(2)
    torch.testing.assert_close(merged["a"], 2 * cos / (cos + 1) * torch.tensor([1.0, 0.5]))
    assert one["a"].tolist() == [1, 0]


def test_the_first_model_gives_the_precision_to_all():
    w0, one, two = {"w": torch.zeros(2)}, torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])
    expected = hft.model_stock([{"w": one.double()}, {"w": two.double()}], w0)[0]["w"]
    for first, second in ((F64, torch.float32), (torch.float32, F64)):
        found = hft.model_stock([{"w": one.to(first)}, {"w": two.to(second)}], w0)[0]["w"]
        assert found.dtype == first
        torch.testing.assert_close(found, expected.to(first), rtol=4 * torch.finfo(first).eps, atol=0)


# -- Mixout -----------------------------------------------------------------------------------------------------------


def layers() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    shapes = {"linear": (3, 5), "conv": (4, 6, 2, 2), "bias": (7,), "head": (2, 2)}
    w = {name: torch.randn(shape, dtype=F64) for name, shape in shapes.items()}
    return w, {name: x + 1 for name, x in w.items() if name != "head"}


def test_a_depthwise_convolution_has_an_input_for_each_channel():
    w, w0 = ({"depthwise": torch.full((64, 1, 3, 3), x)} for x in (3.0, 1.0))
    channels = hft.mixout(w, w0, p=0.5)["depthwise"].flatten(1)
    assert {tuple(row.unique().tolist()) for row in channels} == {(1.0,), (5.0,)}


@given(p=st.floats(0, 0.75), seed=seeds)
def test_the_formula_its_derivative_and_a_sweep_with_the_same_draws(p, seed):
    """``(m W + (1 - m) W0 - p W0) / (1 - p)``, as in the paper."""
    torch.manual_seed(seed)
    (w, w0), rng = layers(), torch.get_rng_state()
    m = {"linear": (torch.rand(5) >= p).double(), "conv": (torch.rand(6) >= p).double().view(6, 1, 1)}

    def mixed(p, **changed):
        torch.set_rng_state(rng)
        return hft.mixout({**w, **changed}, w0, p=p)

    found, x = mixed(p), w["linear"].clone().requires_grad_()
    for name, kept in m.items():
        expected = (kept * w[name] + (1 - kept) * w0[name] - p * w0[name]) / (1 - p)
        torch.testing.assert_close(found[name], expected, rtol=1e-13, atol=1e-13)
    assert (found["bias"] is w["bias"], found["head"] is w["head"]) == (True, True)
    slope = torch.autograd.grad(mixed(p, linear=x)["linear"].sum(), x)[0]
    torch.testing.assert_close(slope, (m["linear"] / (1 - p)).expand(3, 5), rtol=1e-15, atol=0)
    swept = torch.func.vmap(mixed, randomness="same")(torch.tensor([0.2, p], dtype=F64))
    torch.testing.assert_close(swept["linear"][1], found["linear"], rtol=1e-13, atol=1e-13)


class Versioned(nn.Linear):
    _version = 2

    def _load_from_state_dict(self, state: dict, prefix: str, versions: dict, *rest: object) -> None:
        assert versions.get("version") == 2
        super()._load_from_state_dict(state, prefix, versions, *rest)


def test_modules_find_the_versions_that_they_were_saved_by():
    net = nn.Sequential(Versioned(2, 2), Versioned(2, 2))
    w0, w = copy.deepcopy(net.state_dict()), net.state_dict()
    net[0].weight.data += 1
    loss = lambda p, x: p["0.weight"].square().sum()  # noqa: E731
    for mixed in (
        hft.wise(w, w0),
        hft.lines(w, w0, ["0", "1"]),
        hft.model_stock([w, w], w0)[0],
        hft.learned_wise(w, w0, loss, [0])[0],
    ):
        net.load_state_dict(mixed)
