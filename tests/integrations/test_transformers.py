"""Hugging Face's Trainer, by each of the ways it takes an optimizer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import hyperopt_ftp as hft
from hyperopt_ftp import plot
from hyperopt_ftp.integrations.transformers import optimizer_cls_and_kwargs, parameter_groups

from .runs import has_moved, is_equal

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")  # the Trainer needs it

from transformers import (  # noqa: E402
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

LR = 1e-2
FREE_HEAD = {"lr": LR, "exclude": "classifier.*"}
BUILD = {
    "FTPAdamW": (hft.FTPAdamW, FREE_HEAD),
    "FTPSGD": (hft.FTPSGD, {"lr": 0.1, "exclude": "classifier.*"}),
    "SPD": (lambda groups: hft.SPD(torch.optim.AdamW(groups, lr=LR), exclude="classifier.*"), {}),
    "FTP": (lambda groups, lr: hft.FTP(torch.optim.RMSprop(groups, lr=lr), exclude="classifier.*"), {"lr": LR}),
}


def bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return BertForSequenceClassification(BertConfig(vocab_size=20, max_position_embeddings=8, **size))


def trainer(folder, model=None, constant=False, **options) -> Trainer:
    g = torch.Generator().manual_seed(1)
    data = [{"input_ids": torch.randint(20, (8,), generator=g), "labels": i % 2} for i in range(24)]
    quiet = {"report_to": "none", "disable_tqdm": True, "logging_strategy": "no", "use_cpu": True}
    schedule = {"lr_scheduler_type": "constant"} if constant else {"warmup_steps": 2}
    args = TrainingArguments(
        str(folder), max_steps=6, save_steps=3, per_device_train_batch_size=4, learning_rate=LR, **schedule, **quiet
    )
    return Trainer(model, args, train_dataset=data, **options)


@pytest.mark.parametrize("name", BUILD)
def test_a_resumed_training_goes_on_bit_for_bit(name, tmp_path):
    """Dropout is on: the Trainer brings the random state along."""
    build, options = BUILD[name]
    pair = optimizer_cls_and_kwargs(build, weight_decay=0.01, **options)
    whole, resumed = bert(), bert()
    first = trainer(tmp_path, whole, optimizer_cls_and_kwargs=pair)
    first.train()
    second = trainer(tmp_path, resumed, optimizer_cls_and_kwargs=pair)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert is_equal(whole, resumed)
    start = bert()
    assert has_moved(whole.classifier, start.classifier)
    assert has_moved(whole.bert.encoder, start.bert.encoder)
    held = [first.optimizer.optimizer, second.optimizer.optimizer]
    assert type(held[0]).__name__ == name
    assert [group["weight_decay"] for group in held[0].param_groups] == [0.01, 0.0]
    if hasattr(held[0], "radii"):
        assert held[0].radii() == held[1].radii()
        assert "classifier.weight" not in held[0].radii()
        assert "bert.pooler.dense.weight" in held[0].radii()


def test_all_ways_give_the_same_training(tmp_path):
    """Named by our groups, in the Trainer's own groups without names, ready made."""

    def ours(model):
        return {"optimizer_cls_and_kwargs": optimizer_cls_and_kwargs(**FREE_HEAD)}

    def its(model):
        return {"optimizer_cls_and_kwargs": (hft.FTPAdamW, {"lr": LR, "exclude": model.classifier})}

    def ready(model):
        return {"optimizers": (hft.FTPAdamW(parameter_groups(model), lr=LR, exclude="classifier.*"), None)}

    models = []
    for i, way in enumerate((ours, its, ready)):
        model = bert()
        trainer(tmp_path / str(i), model, **way(model)).train()
        models.append(model)
    assert has_moved(models[0].classifier, bert().classifier)
    assert is_equal(models[0], models[1])
    assert is_equal(models[0], models[2])


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.* before .*optimizer.step:UserWarning")
def test_a_tower_in_the_trainer_is_tuned_and_goes_on_bit_for_bit(tmp_path):
    def tower():
        level = hft.hyper(hft.adam(lr=0.05), by=hft.sgd(lr=1e-2), over="lr")
        return hft.hyper(hft.adam(lr=1e-5), by=level, over="lr", constrain={"lr": "log"})

    whole, resumed, held = bert(), bert(), []
    for model, resume in ((whole, None), (resumed, str(tmp_path / "checkpoint-3"))):
        held.append(hft.PureOptimizer(model.named_parameters(), tower()))
        made = trainer(tmp_path, model, optimizers=(held[-1], None), constant=True)
        made.train(resume_from_checkpoint=resume)
    assert is_equal(whole, resumed)
    assert has_moved(whole, bert())
    assert held[0].hparams() == held[1].hparams()
    assert held[0].hparams()["lr"] > 1.02e-5


def test_a_tower_in_the_trainer_mends_a_learning_rate_100_times_too_small(tmp_path):
    pytest.importorskip("sklearn")
    from examples import towers, towers_trainer

    plain, _ = towers_trainer.train(hft.sgd(lr=towers.GOOD / 100), steps=120)
    tuned, lr = towers_trainer.train(towers.tower(towers.GOOD / 100, towers.FROM_BELOW), steps=120)
    assert plain[-1] > 2.2  # chance is log 10 = 2.303
    assert tuned[-1] < 0.6
    assert lr > 0.1
    towers_trainer.figure(dict.fromkeys("abcd", (tuned, lr))).savefig(tmp_path / "figure.png")


class Watching(TrainerCallback):
    """What docs/integrations.md shows: the optimizer is there when the training begins, wrapped by Accelerate."""

    def __init__(self, to) -> None:
        self.to = to

    def on_train_begin(self, args, state, control, optimizer=None, **_) -> None:
        hft.watch(optimizer, self.to, first=state.global_step)


def test_a_callback_watches_over_two_runs(tmp_path):
    pair = optimizer_cls_and_kwargs(**FREE_HEAD)
    file = tmp_path / "layers.csv"
    for resume in (None, str(tmp_path / "checkpoint-3")):
        made = trainer(tmp_path, bert(), optimizer_cls_and_kwargs=pair, callbacks=[Watching(file)])
        made.train(resume_from_checkpoint=resume)
    steps, layers, values = plot.history(file)
    assert steps == list(range(1, 7))
    assert dict(zip(layers, values[-1], strict=True)) == pytest.approx(made.optimizer.optimizer.radii(), rel=1e-5)


def test_it_works_with_model_init(tmp_path):
    """Where the Trainer makes the model itself, and so no optimizer can be ready."""
    made = trainer(tmp_path, model_init=bert, optimizer_cls_and_kwargs=optimizer_cls_and_kwargs(**FREE_HEAD))
    made.train()
    assert has_moved(made.model.bert.encoder, bert().bert.encoder)
    held = made.optimizer.optimizer.radii()
    assert set(held) == {name for name, _ in made.model.named_parameters() if not name.startswith("classifier.")}


def swin():
    size = {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2}
    return transformers.SwinForImageClassification(transformers.SwinConfig(**size))


def t5():  # relative biases, its own RMSNorm
    size = {"vocab_size": 20, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**size))


@pytest.mark.parametrize("build", [bert, swin, t5])
def test_groups_are_those_of_the_trainer(build, tmp_path):
    model = build()
    its = trainer(tmp_path, model, optimizer_cls_and_kwargs=(torch.optim.AdamW, {})).create_optimizer()
    groups = parameter_groups(model, weight_decay=0.3)
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    for group, other in zip(groups, its.param_groups, strict=True):
        assert {p for _, p in group["params"]} == set(other["params"])


def test_frozen_parameters_are_left_out():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    assert [name for group in parameter_groups(model) for name, _ in group["params"]] == ["1.weight", "1.bias"]


LINEAR = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: parameter_groups(LINEAR, float("inf")), ValueError, "weight_decay must lie in"),
        (lambda: parameter_groups(nn.ReLU()), ValueError, "the ReLU has no parameter that requires a gradient; set"),
        (lambda: parameter_groups(LINEAR.parameters()), TypeError, "takes the model, got generator"),
        (lambda: optimizer_cls_and_kwargs(exclude="a"), ValueError, "give lr: the learning_rate of TrainingArguments"),
        (lambda: optimizer_cls_and_kwargs(lr=1.0, radus_lr=1.0), TypeError, "'radus_lr'; did you mean 'radius_lr'"),
        (lambda: optimizer_cls_and_kwargs(lambda groups: None, lr=1.0), TypeError, "'lr'; the arguments are groups"),
        (lambda: optimizer_cls_and_kwargs(LINEAR, lr=1.0), TypeError, "build must be a class .* got a Linear"),
        (lambda: optimizer_cls_and_kwargs(torch.optim.SGD(LINEAR.parameters())), TypeError,
         r"got a SGD; an optimizer that exists goes into Trainer\(optimizers="),
    ],
)  # fmt: skip
def test_bad_input(call, error, said):
    with pytest.raises(error, match=said):
        call()


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_remat_layers_stand_in_for_gradient_checkpointing_enable_which_is_refused():
    """Dropout is on, weights are tied."""
    torch.manual_seed(0)
    size = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertForMaskedLM(BertConfig(vocab_size=11, max_position_embeddings=8, **size)).double().train()
    loss = hft.of_module(model, lambda m, batch: m(input_ids=batch, labels=batch).loss)
    data, slopes = [torch.randint(11, (2, 6)) for _ in range(3)], []
    params = dict(model.named_parameters(remove_duplicate=False))
    for remat in (False, True):
        if remat:
            hft.remat_layers(model, "bert.encoder.layer.*")
        lr = torch.tensor(LR, dtype=torch.float64, requires_grad=True)
        torch.manual_seed(3)
        run = hft.train(hft.adam(eps=1e-3), loss, params, data, hparams={"lr": lr})
        slopes += torch.autograd.grad(sum(p.square().sum() for p in run.params.values()), lr)
    torch.testing.assert_close(*slopes, rtol=1e-12, atol=0)
    model.load_state_dict({**run.params, **run.buffers})
    decoder, words = model.get_output_embeddings(), model.get_input_embeddings()
    assert decoder.weight is words.weight
    for layer in model.bert.encoder.layer:
        del layer.forward
    model.gradient_checkpointing_enable()
    with pytest.raises(RuntimeError, match=r"gradient_checkpointing_enable\(\).* take hft.remat_layers"):
        hft.train(hft.adam(eps=1e-3), loss, params, data)
