"""PEFT: LoRA's adapters are held near zero, without memory for an anchor."""

from __future__ import annotations

import pytest
import torch

import hyperopt_ftp as hft

from .runs import is_equal

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict  # noqa: E402
from transformers import BertConfig, BertForSequenceClassification  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

HEAD = "*.classifier.*"
BUILD = {
    "FTPAdamW": lambda named: hft.FTPAdamW(named, lr=1e-2, anchor="zero", exclude=HEAD),
    "SPD": lambda named: hft.SPD(torch.optim.AdamW(named, lr=1e-2), strength=1.0, anchor="zero", exclude=HEAD),
}


def lora():
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    base = BertForSequenceClassification(BertConfig(vocab_size=20, max_position_embeddings=8, **size, **quiet))
    return get_peft_model(base, LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS"))


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


def test_the_sum_in_a_row_of_an_adapter_stays_within_its_radius():
    model = lora()
    opt = BUILD["FTPAdamW"](model.named_parameters())
    train(model, opt, range(6))
    radii = opt.radii()
    assert len(radii) == 4
    for name, radius in radii.items():
        assert 0 < model.get_parameter(name).abs().sum(1).max() <= radius * (1 + 1e-5)


@pytest.mark.parametrize("name", BUILD)
def test_adapters_and_optimizer_go_on_bit_for_bit(name, tmp_path):
    whole, first, second = lora(), lora(), lora()
    train(whole, BUILD[name](whole.named_parameters()), range(6))
    opt = BUILD[name](first.named_parameters())
    train(first, opt, range(3))
    torch.save({"adapters": get_peft_model_state_dict(first), "opt": opt.state_dict()}, tmp_path / "c.pt")
    kept = torch.load(tmp_path / "c.pt", weights_only=True)
    set_peft_model_state_dict(second, kept["adapters"])
    opt = BUILD[name](second.named_parameters())
    opt.load_state_dict(kept["opt"])
    train(second, opt, range(3, 6))
    assert is_equal(whole, second)
    assert not is_equal(whole, first)
