"""PEFT: LoRA's adapters are held near zero, without memory for an anchor, and mixed as whole weights are."""

from __future__ import annotations

import pytest
import torch

import hyperopt_ftp as hft

from .runs import is_equal

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict  # noqa: E402
from transformers import BertConfig, BertForSequenceClassification  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

HEAD = "*.classifier.*"
BUILD = {
    "FTPAdamW": lambda named: hft.FTPAdamW(named, lr=1e-2, anchor="zero", exclude=HEAD),
    "SPD": lambda named: hft.SPD(torch.optim.AdamW(named, lr=1e-2), strength=1.0, anchor="zero", exclude=HEAD),
}


def base() -> BertForSequenceClassification:
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForSequenceClassification(BertConfig(vocab_size=20, max_position_embeddings=8, **size, **quiet))


def lora(**options) -> PeftModel:
    return get_peft_model(base(), LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS", **options))


def train(model, opt, steps: range) -> None:
    for step in steps:
        opt.zero_grad()
        tokens = torch.randint(20, (4, 8), generator=torch.Generator().manual_seed(step))
        model(input_ids=tokens, labels=torch.tensor([0, 1, 0, 1])).loss.backward()
        opt.step()


def trained(model) -> dict[str, torch.Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("name", BUILD)
def test_no_anchor_takes_memory_and_frozen_weights_take_none(name):
    model = lora()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    opt = BUILD[name](model.named_parameters())
    train(model, opt, range(4))
    assert set(opt.state) == set(trained(model).values())
    assert not any("anchor" in state for state in opt.state.values())
    assert not any("anchor" in state for state in opt.state_dict()["state"].values())
    adapters = {name for name in trained(model) if "lora" in name}
    assert len(adapters) == 4
    held = {name for name, p in trained(model).items() if "anchor_fingerprint" in opt.state[p]}
    assert held == adapters
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == set(trained(model))


def test_only_adapters_are_held_where_more_is_trained():
    """As docs/integrations.md shows."""
    model = lora(bias="all", use_dora=True)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    free = [name for name, _ in named if ".lora_A." not in name and ".lora_B." not in name]
    assert any("magnitude" in name for name in free)
    assert any("LayerNorm.bias" in name for name in free)
    opt = hft.FTPAdamW(named, lr=1e-2, anchor="zero", exclude=free)
    train(model, opt, range(2))
    assert set(opt.radii()) == {name for name, _ in named if ".lora_A." in name or ".lora_B." in name}


@pytest.mark.parametrize("name", BUILD)
def test_adapters_and_optimizer_go_on_bit_for_bit(name, tmp_path):
    whole, first = lora(), lora()
    train(whole, BUILD[name](whole.named_parameters()), range(6))
    opt = BUILD[name](first.named_parameters())
    train(first, opt, range(3))
    first.save_pretrained(str(tmp_path))
    torch.save(opt.state_dict(), tmp_path / "opt.pt")
    second = PeftModel.from_pretrained(base(), str(tmp_path), is_trainable=True)
    opt = BUILD[name](second.named_parameters())
    opt.load_state_dict(torch.load(tmp_path / "opt.pt", weights_only=True))
    train(second, opt, range(3, 6))
    assert is_equal(whole, second)
    assert not is_equal(whole, first)


def tuned(seed: int, **options) -> PeftModel:
    """As after training: adapters that are not 0, in float64."""
    model = lora(**options).double()
    torch.manual_seed(seed)
    for name, p in model.named_parameters():
        if "lora" in name:
            p.data = torch.randn_like(p) + 1
    return model


def merged(model: PeftModel) -> dict[str, torch.Tensor]:
    return model.merge_and_unload().state_dict()


@pytest.mark.parametrize("whole", [True, False])
def test_wise_of_adapters_is_that_of_the_merged_weights(whole: bool):
    """Of the state_dict of the model, and of the adapter alone, as it is saved."""
    model, start = tuned(1), base().double().state_dict()
    want = hft.wise(merged(tuned(1)), {n: w for n, w in start.items() if "classifier" not in n}, strength=0.25)
    if whole:
        model.load_state_dict(hft.wise(model.state_dict(), "zero", strength=0.25))
    else:
        set_peft_model_state_dict(model, hft.wise(get_peft_model_state_dict(model), "zero", strength=0.25))
    for name, w in merged(model).items():
        torch.testing.assert_close(w, want[name], rtol=1e-13, atol=1e-14)


def test_model_stock_of_adapters_is_that_of_the_merged_weights():
    start = {n: w for n, w in base().double().state_dict().items() if "classifier" not in n}
    want, _ = hft.model_stock([merged(tuned(seed)) for seed in (1, 2)], start)
    adapters = [get_peft_model_state_dict(tuned(seed)) for seed in (1, 2)]
    config = {"target_modules": ["query", "value"], "task_type": "SEQ_CLS"}
    model = get_peft_model(base(), LoraConfig(r=4, lora_alpha=16, **config)).double()  # twice the rank and the alpha
    set_peft_model_state_dict(model, hft.model_stock(adapters, "zero")[0])
    for name, w in merged(model).items():
        torch.testing.assert_close(w, want[name], rtol=1e-12, atol=1e-13)


def test_adapters_that_are_no_product_are_refused():
    with pytest.raises(ValueError, match="lora_magnitude_vector.* not LoRA's product of two factors"):
        hft.wise(get_peft_model_state_dict(lora(use_dora=True)), "zero")
