"""timm's registry, groups, schedulers and heads."""

from __future__ import annotations

import copy
from argparse import Namespace

import pytest
import torch
from torch import nn

import hyperopt_ftp as hft
from hyperopt_ftp.integrations import timm as ours

from .runs import has_moved, is_equal

timm = pytest.importorskip("timm")

from timm.models import resume_checkpoint  # noqa: E402
from timm.optim import create_optimizer_v2, list_optimizers, optimizer_kwargs, param_groups_layer_decay  # noqa: E402
from timm.optim._optim_factory import default_registry  # noqa: E402
from timm.scheduler.cosine_lr import CosineLRScheduler  # noqa: E402
from timm.utils import CheckpointSaver  # noqa: E402


class Failing(nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 2)

    def get_classifier(self) -> nn.Module:
        return self.fc


def vit(**options) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_vit", img_size=16, patch_size=8, depth=2, **{"num_classes": 3, **options})


def train(model: nn.Module, opt, steps: range, schedule=None) -> None:
    for step in steps:
        g = torch.Generator().manual_seed(step)
        opt.zero_grad()
        logits = model(torch.randn(4, 3, 16, 16, generator=g))
        nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0])).backward()
        opt.step()
        if schedule is not None:
            schedule.step_update(step + 1)


def cosine(opt) -> CosineLRScheduler:
    return CosineLRScheduler(opt, t_initial=8, warmup_t=2, warmup_lr_init=1e-4, t_in_epochs=False)


def free(opt) -> set[torch.Tensor]:
    groups = opt.param_groups
    return {p for g in groups for p, held in zip(g["params"], g["constrained"], strict=True) if not held}


@pytest.mark.parametrize(
    ("name", "cls", "its"),
    [("ftpadamw", hft.FTPAdamW, {"betas": (0.8, 0.9), "eps": 1e-6}), ("ftpsgd", hft.FTPSGD, {"momentum": 0.8})],
)
def test_timm_builds_our_classes_by_name(name, cls, its):
    ours.register()
    model = vit()
    options = {"weight_decay": 0.05, "exclude": model.get_classifier(), "kappa": 0.5}
    opt = create_optimizer_v2(model, opt=name, lr=0.01, **options, **its)
    assert type(opt) is cls
    assert {key: opt.param_groups[0][key] for key in its} == its
    assert {group["weight_decay"] for group in opt.param_groups} == {0.0, 0.05}
    assert all(group["kappa"] == 0.5 and group["lr"] == 0.01 for group in opt.param_groups)
    assert free(opt) == set(model.get_classifier().parameters())


def test_sgd_is_timms_sgd():
    opt = ours.create_optimizer(vit(), "ftpsgd", lr=0.1, eps=1e-6, betas=(0.9, 0.99))  # which timm leaves out for SGD
    assert (opt.defaults["momentum"], opt.defaults["nesterov"]) == (0.9, True)


def test_registering_twice_is_silent_and_changes_nothing(caplog):
    ours.register()
    before = {name: default_registry.get_optimizer_info(name) for name in list_optimizers()}
    ours.register()
    assert not caplog.records
    assert {name: default_registry.get_optimizer_info(name) for name in list_optimizers()} == before


def test_a_name_that_is_taken_is_an_error_and_nothing_is_registered(monkeypatch):
    others = {name: info for name, info in default_registry._optimizers.items() if not name.startswith("ftp")}
    monkeypatch.setattr(default_registry, "_optimizers", {**others, "ftpadamw": others["adamw"]})
    with pytest.raises(RuntimeError, match=r"other optimizers of these names: \{'ftpadamw'.*must be free"):
        ours.register()
    assert "ftpsgd" not in list_optimizers()


def test_lookahead_goes_around_it_and_resumes():
    ours.register()

    def start():
        model = vit()
        return model, create_optimizer_v2(model, opt="lookahead_ftpadamw", lr=0.01, exclude=model.get_classifier())

    model, opt = start()
    seen = []
    hft.watch(opt, lambda step, layers: seen.append((step, layers)))
    train(model, opt, range(13))  # its slow weights move at 6 and 12
    assert type(opt).__name__ == "Lookahead"
    assert [step for step, _ in seen] == list(range(1, 14))
    assert opt._base_optimizer.radii() == {name: layer["radius"] for name, layer in seen[-1][1].items()}
    first, first_opt = start()
    train(first, first_opt, range(7))
    second, second_opt = start()
    second.load_state_dict(first.state_dict())
    second_opt.load_state_dict(copy.deepcopy(first_opt.state_dict()))
    train(second, second_opt, range(7, 13))
    assert is_equal(model, second)
    assert has_moved(model.blocks, vit().blocks)


@pytest.mark.parametrize("name", ["ftpadamw", "ftpsgd"])
def test_the_arguments_of_timms_training_script_are_taken(name):
    """So that the script needs one changed import: docs/integrations.md."""
    options = {"opt": name, "lr": 0.01, "weight_decay": 0.05, "momentum": 0.9, "layer_decay": 0.7}
    model = vit()
    opt = ours.create_optimizer(model, **optimizer_kwargs(cfg=Namespace(**options)), kappa=0.5)
    assert free(opt) == set(model.get_classifier().parameters())
    assert {group["kappa"] for group in opt.param_groups} == {0.5}
    assert len({group["lr_scale"] for group in opt.param_groups}) == 4


def test_layer_decay_and_schedule_equal_groups_with_their_own_learning_rates():
    model, by_hand = vit(), vit()
    opt = ours.create_optimizer(model, lr=0.01, weight_decay=0.05, layer_decay=0.5)
    schedule = cosine(opt)
    scales = [group["lr_scale"] for group in opt.param_groups]
    assert len(set(scales)) == 4  # patches, two blocks, head
    assert [group["lr"] for group in opt.param_groups] == pytest.approx([1e-4 * scale for scale in scales])
    train(model, opt, range(4), schedule)

    groups = param_groups_layer_decay(
        by_hand, weight_decay=0.05, layer_decay=0.5, no_weight_decay_list=by_hand.no_weight_decay()
    )
    plain = hft.FTPAdamW(groups, exclude=by_hand.get_classifier())
    lrs = [1e-4, 1e-4 + (0.01 - 1e-4) / 2, *(0.005 * (1 + torch.tensor(torch.pi * t / 8).cos().item()) for t in (2, 3))]
    for step, lr in enumerate(lrs):
        for group in plain.param_groups:
            group["lr"] = lr * group["lr_scale"]
        train(by_hand, plain, range(step, step + 1))
    assert list(opt.radii().values()) == pytest.approx(list(plain.radii().values()), rel=1e-4)
    assert set(opt.radii()) == {name for name, _ in model.named_parameters() if not name.startswith("head.")}
    for p, q in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_a_run_that_is_resumed_by_timms_means_goes_on_bit_for_bit(tmp_path):
    def start():
        model = vit()
        opt = ours.create_optimizer(model, lr=0.01, weight_decay=0.05, layer_decay=0.7)
        return model, opt, cosine(opt)

    model, opt, schedule = start()
    train(model, opt, range(6), schedule)

    first, first_opt, first_schedule = start()
    train(first, first_opt, range(3), first_schedule)
    CheckpointSaver(first, first_opt, checkpoint_dir=str(tmp_path)).save_checkpoint(epoch=0)
    second, second_opt, second_schedule = start()
    resume_checkpoint(second, str(tmp_path / "last.pth.tar"), second_opt, log_info=False)
    second_schedule.step_update(3)
    train(second, second_opt, range(3, 6), second_schedule)
    assert is_equal(model, second)
    assert opt.radii() == second_opt.radii()
    assert has_moved(model.blocks, vit().blocks)


@pytest.mark.parametrize(
    ("build", "head"),
    [
        (lambda: timm.create_model("test_resnet", num_classes=3), ["fc"]),
        (lambda: timm.create_model("test_convnext", num_classes=3), ["head.fc"]),
        (lambda: timm.create_model("deit_tiny_distilled_patch16_224", depth=1, num_classes=3), ["head", "head_dist"]),
        (lambda: timm.create_model("volo_d1_224", num_classes=3), ["head", "aux_head"]),
        (lambda: vit(num_classes=0), []),
        (lambda: timm.create_model("efficientvit_m0", num_classes=0), []),  # its get_classifier fails
    ],
    ids=["ResNet", "ConvNeXt", "distilled", "auxiliary", "no head", "no head to ask"],
)
def test_the_head_is_free(build, head):
    model = build()
    expected = {p for name in head for p in model.get_submodule(name).parameters()}
    assert len(expected) == 2 * len(head)
    assert free(ours.create_optimizer(model, lr=0.01)) == expected
    model.requires_grad_(True)
    for name in head:  # a frozen one is no error
        model.get_submodule(name).requires_grad_(False)
    assert free(ours.create_optimizer(model, lr=0.01)) == set()


def test_an_exclude_that_is_given_decides_and_groups_of_ones_own_are_left_alone():
    model = vit()
    assert free(ours.create_optimizer(model, lr=0.01, exclude=())) == set()
    assert free(ours.create_optimizer(model, lr=0.01, exclude=model.patch_embed)) == set(model.patch_embed.parameters())
    groups = [{"params": list(model.blocks.parameters()), "lr": 0.1}, {"params": list(model.head.parameters())}]
    opt = ours.create_optimizer(model, lr=0.01, param_group_fn=lambda m: groups)
    assert [group["lr"] for group in opt.param_groups] == [0.1, 0.01]
    assert free(opt) == set(model.head.parameters())


@pytest.mark.parametrize(
    ("model", "options", "error", "said"),
    [
        (vit, {"opt": "ftp_adamw"}, ValueError, r"opt must be one of \['ftpadamw', 'ftpsgd'\], got 'ftp_adamw'"),
        (vit, {"opt": "adamw"}, ValueError, "any other name, also .* is for timm.optim.create_optimizer_v2, after reg"),
        (lambda: nn.Linear(2, 2), {}, TypeError, "a Linear has not; pass exclude= the head's module, or ()"),
        (Failing, {}, TypeError, r"Failing.get_classifier\(\) fails: .*no attribute 'fc'; pass exclude= the head's"),
    ],
)
def test_bad_input(model, options, error, said):
    with pytest.raises(error, match=said):
        ours.create_optimizer(model(), **options)
