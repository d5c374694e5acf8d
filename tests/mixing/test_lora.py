"""WiSE-FT, LiNeS and Model Stock of LoRA's adapters: their products are mixed, as whole weights are."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import hyperopt_ftp as hft

from ..support.draws import seeds

F64 = torch.float64
#: A and B, as they are called by peft in a model and in a file, of an embedding, by loralib, torchtune, diffusers.
NAMES = {
    "peft": ("{}.lora_A.default.weight", "{}.lora_B.default.weight"),
    "saved": ("{}.lora_A.weight", "{}.lora_B.weight"),
    "embedding": ("{}.lora_embedding_A.default", "{}.lora_embedding_B.default"),
    "loralib": ("{}.lora_A", "{}.lora_B"),
    "torchtune": ("{}.lora_a.weight", "{}.lora_b.weight"),
    "diffusers": ("{}.lora.down.weight", "{}.lora.up.weight"),
    "kohya": ("lora_unet_{}.lora_down.weight", "lora_unet_{}.lora_up.weight"),
}
LAYERS = ("low", "mid", "top")


def adapter(seed: int, names: tuple[str, str] = NAMES["peft"], rank: int = 2) -> dict[str, Tensor]:
    """Of three layers, with a head that has no anchor."""
    torch.manual_seed(seed)
    a, b = names
    factors = {
        n: x
        for layer in LAYERS
        for n, x in (
            (a.format(layer), torch.randn(rank, 4, dtype=F64)),
            (b.format(layer), torch.randn(3, rank, dtype=F64)),
        )
    }
    return {**factors, "head.weight": torch.randn(2, 3, dtype=F64)}  # fmt: skip


def products(weights: dict[str, Tensor], names: tuple[str, str] = NAMES["peft"]) -> dict[str, Tensor]:
    """What is added to the weights of each layer."""
    a, b = names
    return {layer: weights[b.format(layer)].flatten(1) @ weights[a.format(layer)].flatten(1) for layer in LAYERS}


def zeros(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.zeros_like(w) for name, w in weights.items() if name != "head.weight"}


def first(weights: dict[str, Tensor], zero: str) -> dict[str, Tensor]:
    """As LoRA begins: one factor is 0, B as a rule, the other is not."""
    return {n: torch.zeros_like(w) if zero in n else torch.randn_like(w) for n, w in weights.items() if "lora" in n}


@given(names=st.sampled_from([*NAMES.values()]), a=st.floats(0, 1), b=st.floats(0, 1), seed=seeds)
def test_products_are_mixed_once_and_the_rest_stays(names, a, b, seed):
    """By shares of the fine-tuned weights that are one for all, or on a line."""
    weights = adapter(seed, names)
    for anchor in ("zero", zeros(weights)):
        for mixed, kept in (
            (hft.wise(weights, anchor, a), (1 - a,) * 3),
            (hft.lines(weights, anchor, [f"*{n}*" for n in LAYERS], alpha=a, beta=b), (a, a + b / 2, a + b)),
        ):
            now, then = products(mixed, names), products(weights, names)
            for layer, share in zip(LAYERS, kept, strict=True):
                torch.testing.assert_close(now[layer], share * then[layer], rtol=1e-14, atol=1e-14)
            assert torch.equal(mixed["head.weight"], weights["head.weight"])
            assert {name: w.shape for name, w in mixed.items()} == {name: w.shape for name, w in weights.items()}


@pytest.mark.parametrize("zero", ["lora_A", "lora_B"])
def test_an_anchor_where_adapters_begin_is_zero(zero: str):
    """The product is what counts."""
    weights = adapter(0)
    mixed, end = (hft.wise(weights, first(weights, zero), strength) for strength in (0.25, 1.0))
    for layer, product in products(weights).items():
        torch.testing.assert_close(products(mixed)[layer], 0.75 * product, rtol=1e-14, atol=1e-15)
        assert not products(end)[layer].any()


@pytest.mark.parametrize("kept", ["lora_A", "lora_B"])
def test_with_one_factor_frozen_an_anchor_may_be_any(kept: str):
    """LoRA-FA trains B alone; a mixture of its two ends is one of products."""
    weights = adapter(0)
    anchor = {n: w.clone() if kept in n else torch.randn_like(w) for n, w in weights.items() if "lora" in n}
    mixed = products(hft.wise(weights, anchor, 0.25))
    for layer, product in products(weights).items():
        want = 0.75 * product + 0.25 * products(anchor)[layer]
        torch.testing.assert_close(mixed[layer], want, rtol=1e-13, atol=1e-14)


def test_layers_without_an_adapter_count_in_lines():
    weights = {"stem.weight": torch.ones(2, dtype=F64), **adapter(0)}
    mixed = hft.lines(weights, "zero", ["stem", *LAYERS], alpha=0.0, beta=1.0)
    for layer, kept in zip(LAYERS, (1 / 3, 2 / 3, 1.0), strict=True):
        torch.testing.assert_close(products(mixed)[layer], kept * products(weights)[layer], rtol=1e-13, atol=1e-14)
    assert torch.equal(mixed["stem.weight"], weights["stem.weight"])


def test_a_bias_of_the_second_factor_is_a_part_of_the_adapter():
    weights = {**adapter(0), "low.lora_B.default.bias": torch.ones(3, dtype=F64)}
    assert hft.wise(weights, "zero", 0.25)["low.lora_B.default.bias"].tolist() == [0.75] * 3


def test_shares_are_learned_of_the_products():
    weights = adapter(0)
    target = {layer: 0.6 * product for layer, product in products(weights).items()}

    def away(p: dict[str, Tensor], _: None) -> Tensor:
        return sum(((x - target[layer]) ** 2).sum() for layer, x in products(p).items())  # pyright: ignore

    mixed, shares = hft.learned_wise(weights, "zero", away, [None] * 300, strength_lr=0.02)
    assert sorted(shares) == sorted(NAMES["peft"][1].format(layer) for layer in LAYERS)
    assert all(share.item() == pytest.approx(0.4, abs=1e-3) for share in shares.values())
    for layer, x in products(mixed).items():
        torch.testing.assert_close(x, target[layer], rtol=1e-2, atol=0)


def test_the_mixture_has_derivatives():
    weights, strength = adapter(0), torch.tensor(0.25, dtype=F64)
    f = lambda s: products(hft.wise(weights, "zero", s))["low"].sum()  # noqa: E731
    want = -products(weights)["low"].sum()
    torch.testing.assert_close(torch.func.grad(f)(strength), want, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("anchor", ["zero", "absent"])
def test_model_stock_is_that_of_the_products(anchor: str, conv: bool):
    """Of three models whose adapters agree to some degree; the averages have three times the rank."""
    base, models = adapter(0), []
    for seed in (1, 2, 3):
        own = adapter(seed)
        models.append({n: w + 0.3 * own[n] for n, w in base.items()})
    whole = [{f"{n}.weight": x for n, x in products(m).items()} | {"head.weight": m["head.weight"]} for m in models]
    none = {f"{n}.weight": torch.zeros_like(whole[0][f"{n}.weight"]) for n in LAYERS if anchor == "zero"}
    want, ratios = hft.model_stock(whole, none)
    if conv:  # (r, in, 1, 1) and (out, r, 1, 1)
        models = [{n: w[..., None, None] if "lora" in n else w for n, w in m.items()} for m in models]
    merged, t = hft.model_stock(models, "zero" if anchor == "zero" else {})
    assert merged["low.lora_A.default.weight"].shape[:2] == (6, 4)
    assert merged["low.lora_B.default.weight"].shape[:2] == (3, 6)
    assert len(t) == len(ratios) == len(none)
    for layer, product in products(merged).items():
        torch.testing.assert_close(product, want[f"{layer}.weight"], rtol=1e-12, atol=1e-13)
    for layer in none and LAYERS:
        got, expected = t[f"{layer}.lora_B.default.weight"], ratios[f"{layer}.weight"]
        assert 0.5 < expected < 1
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)
    assert torch.equal(merged["head.weight"], want["head.weight"])


WRONG = {
    "a product of the anchor": (
        lambda w: hft.wise(w, adapter(1)), "LoRA's product of 'low.lora_A.* must be 0 in anchor; mix whole weights",
    ),
    "a product of model_stock's anchor": (
        lambda w: hft.model_stock([w, adapter(2)], {n: w[n].clone() for n in w if "lora_A" in n}),
        "must be 0 in anchor",
    ),
    "no adapters": (lambda w: hft.wise({"head": w["head.weight"]}, "zero"), "got 'zero' without any"),
    "one factor alone": (
        lambda w: hft.wise({n: x for n, x in w.items() if n != "mid.lora_B.default.weight"}, "zero"),
        r"\['mid.lora_A.default.weight'\] are of adapters that are not LoRA's product",
    ),
    "DoRA": (
        lambda w: hft.lines({**w, "low.lora_magnitude_vector": w["head.weight"]}, "zero", ["low", "top"]),
        r"\['low.lora_magnitude_vector'\] are of adapters that are not LoRA's product",
    ),
    "LoHa": (
        lambda w: hft.wise({"low.hada_w1_a": w["head.weight"]}, {"low.hada_w1_a": 0 * w["head.weight"]}),
        "are of adapters that are not LoRA's product",
    ),
    "a share of the first factor": (
        lambda w: hft.wise(w, "zero", {"low.lora_A.default.weight": 0.5}), r"no weights .* \(LoRA's B has",
    ),
}  # fmt: skip


ADAPTERS = (
    "hada_w1_a", "lokr_w1", "oft_R.weight", "hra_u", "vera_lambda_b", "pvera_lambda_b", "vblora_logits_A",
    "randlora_lambda", "unilora_theta_d", "osf_svd_params.S_low", "gralora_A", "delora_lambda", "hira_B", "glora_A.Xd",
    "lily_router.weight", "adamss_newB", "adamss_A.0", "deft_P", "peanut_A.weight", "psoft_R.weight", "road_theta",
)  # fmt: skip


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_that_are_no_product_of_two_are_refused_and_modules_called_alike_are_not(name: str):
    w, w0 = torch.ones(2), torch.zeros(2)
    with pytest.raises(ValueError, match="of adapters that are not LoRA's product"):
        hft.wise({f"low.{name}": w}, {f"low.{name}": w0})
    other = f"low.{name.partition('_')[0]}_head.weight"
    if not re.match(r"low\.(hada|lokr|oft|hra|p?vera|vblora|randlora|unilora)_", other):  # whose prefix tells
        assert hft.wise({other: w}, {other: w0})[other].eq(0.5).all()


@pytest.mark.parametrize(("call", "said"), WRONG.values(), ids=WRONG)
def test_what_has_no_right_mixture_is_refused(call: Callable[..., object], said: str):
    with pytest.raises(ValueError, match=said):
        call(adapter(0))


def test_another_word_than_zero_is_refused():
    with pytest.raises(ValueError, match="by name, or 'zero' .*, got 'zeros'"):
        hft.wise(adapter(0), "zeros")  # pyright: ignore


def test_a_scale_beside_factors_is_refused_where_their_rank_grows():
    pair = {"q.lora_down.weight": torch.ones(1, 2), "q.lora_up.weight": torch.ones(2, 1)}
    with pytest.raises(ValueError, match="q.alpha.*are divided by the rank"):
        hft.model_stock([{**pair, "q.alpha": torch.ones(())}] * 2, "zero")
    named = {"a.to_q_lora.down.weight": torch.ones(1, 2), "a.to_q_lora.up.weight": torch.ones(2, 1)}
    mixed = hft.wise(named, "zero", 0.25)
    assert torch.equal(mixed["a.to_q_lora.down.weight"], named["a.to_q_lora.down.weight"])
    assert torch.equal(mixed["a.to_q_lora.up.weight"], 0.75 * named["a.to_q_lora.up.weight"])
