"""hft.remat_layers: which modules it takes, copies and pickles of them, and models of other libraries."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn
from torch.func import functional_call

import hyperopt_ftp as hft


def network() -> nn.Module:
    torch.manual_seed(0)
    block = lambda: nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Dropout(0.2))  # noqa: E731
    return nn.ModuleDict({"body": nn.ModuleList([block(), block()]), "head": nn.Linear(3, 1)}).double()


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("body.*", ["body.0", "body.1"]), ("body", ["body.0", "body.1"]), ("body.1", ["body.1"]),
        ("*.0", ["body.0", "body.1.0"]), ("head", ["head"]), ("", ["body.0", "body.1", "head"]),
    ],
)  # fmt: skip
def test_which_modules_it_takes(pattern, names):
    net = network()
    keys = [*net.state_dict()]
    assert hft.remat_layers(net, pattern) == names
    assert [*net.state_dict()] == keys
    taken = [name for name, module in net.named_modules() if "forward" in vars(module)]
    assert taken == names


def test_a_copy_has_its_own_weights():
    net = network()["body"][0]
    hft.remat_layers(net, "")
    other, x = copy.deepcopy(net), torch.ones(2, 3, dtype=torch.float64)
    with torch.no_grad():
        other[0].weight.mul_(2)
    found = other.eval()(x)
    assert type(found.grad_fn).__name__ == "RematBackward"
    assert found.equal(torch.tanh(torch.nn.functional.linear(x, other[0].weight, other[0].bias)))


def test_a_saved_module_computes_the_same():
    net, file, x = network()["body"][0].eval(), io.BytesIO(), torch.ones(2, 3, dtype=torch.float64)
    hft.remat_layers(net, "")
    torch.save(net, file)
    file.seek(0)
    assert torch.load(file, weights_only=False)(x).equal(net(x))


def test_a_layer_that_lies_in_two_places_keeps_its_parameters():
    """torch's functional_call leaves what it has put in, and the optimizer would move what nobody uses."""
    net, plain = (nn.Sequential(shared := nn.Linear(3, 3), nn.Tanh(), shared).double() for _ in range(2))
    net.load_state_dict(plain.state_dict())
    own = [*net.parameters()]
    hft.remat_layers(net, "")
    for model in (net, plain):
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            opt.zero_grad()
            model(torch.ones(2, 3, dtype=torch.float64)).square().sum().backward()
            opt.step()
    for x, y, before in zip(net.parameters(), plain.parameters(), own, strict=True):
        assert x is before
        torch.testing.assert_close(x, y, rtol=1e-14, atol=0)


def test_hooks_run_once_and_it_can_be_taken_back():
    net, calls, x = network()["body"][0], [], torch.ones(2, 3, dtype=torch.float64)
    net.register_forward_hook(lambda *_: calls.append(0))
    hft.remat_layers(net, "")
    net(x).sum().backward()
    assert len(calls) == 1
    del net.forward
    assert type(net(x).grad_fn).__name__ != "RematBackward"


def test_what_it_refuses():
    net = network()
    with pytest.raises(ValueError, match=r"'bodi.\*' matches no module; they are.*did you mean 'body'"):
        hft.remat_layers(net, "bodi.*")
    hft.remat_layers(net, "body.0")
    with pytest.raises(ValueError, match="the forward of body.0 was replaced before"):
        hft.remat_layers(net, "body")
    assert "forward" not in vars(net["body"][1])
    for flag in ("gradient_checkpointing", "grad_checkpointing"):
        net = network()
        setattr(net["body"], flag, True)
        with pytest.raises(ValueError, match=r"body checkpoints activations itself.*remat_layers"):
            hft.remat_layers(net, "body")


@pytest.fixture(scope="module")
def bert():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=11, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12,
        hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.BertModel(config, add_pooling_layer=False).double()


def of_bert(net: nn.Module, strategy=None) -> list[torch.Tensor]:
    tokens = [torch.randint(11, (2, 4), generator=torch.Generator().manual_seed(k)) for k in range(3)]
    params = {name: p.detach() for name, p in net.named_parameters()}

    def loss(p, x, own):
        mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
        out = functional_call(net, p, (), {"input_ids": x, "attention_mask": mask}).last_hidden_state
        return (own * out.tanh().mean((1, 2))).mean()

    torch.manual_seed(1)
    value, grads, _ = hft.hypergradient(
        hft.adam(eps_root=1e-8), loss, lambda p: loss(p, tokens[0], 1.0), params, tokens, over=["lr", "loss"],
        hparams={"lr": 0.01, "loss": torch.ones(2, dtype=torch.float64)}, strategy=strategy,
    )  # fmt: skip
    return [value, grads["lr"], grads["loss"]]


def test_a_model_of_hugging_face(bert):
    """Its layers and its embeddings, with dropout, under functional_call."""
    strategy, net = hft.Unroll(checkpoint=1), copy.deepcopy(bert)
    assert hft.remat_layers(net, "encoder.layer.*") == ["encoder.layer.0", "encoder.layer.1"]
    for x, y in zip(of_bert(net, strategy), of_bert(bert, strategy), strict=True):
        assert (x - y).abs().max() <= 1e-12 * y.abs().max()


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
def test_its_own_checkpointing_is_answered_by_a_word(bert):
    net = copy.deepcopy(bert).train()
    net.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match=r"gradient_checkpointing_disable\(\)"):
        hft.remat_layers(net, "encoder.layer.*")
    with pytest.raises(RuntimeError, match=r"hft\.remat_layers\(net, pattern\)"):
        of_bert(net)
