"""The settings of the paper's classification benchmarks (FTP, arXiv 2310.19182), as far as sources state them.

Read for it: README, code and lists of github.com/GT-RIPL/FTP and of its forerunner, github.com/PotatoTian/TPGM; README,
code and issues of github.com/mlfoundations/wise-ft. What stands in the papers alone counts as not stated.
"""

SHARED = {"anchor": "imagenet", "shares": (0.01, 0.74, 0.25), "seeds": (0,)}
PAPERS = {
    "domainnet": SHARED
    | {
        "domain": "real",
        "network": "resnet50_clip",
        "projection": 1024,  # `attnpool.c_proj`, in their model the last layer before the head
        "methods": ("nesterov", "ftp_nesterov", "linear"),
        "wider": (("nesterov", 1e-3), ("ftp_nesterov", 1e-2), ("linear", 1e-3)),
        "epochs": 50,
        "batch_size": 256,  # 64 on each of 4 GPUs
        "weight_decay": 5e-4,  # the authors' plain SGD; with FTP it is 0
    },
    "imagenet": SHARED
    | {
        "network": "vit_base_patch16_clip_quickgelu_224",  # OpenAI's weights were trained with QuickGELU
        "projection": 512,
        "methods": ("adamw", "ftp", "linear"),
        "wider": (("adamw", 3e-5), ("ftp", 3e-5), ("linear", 3e-4)),
        "epochs": 10,
        "batch_size": 512,  # TPGM's too: 32 on each of 16 GPUs
        "weight_decay": 0.1,
        "warm_up": 0.02,  # 500 of 25,030 steps
        "clip": 1.0,
    },
}
#: Where the settings are stated, and what no source states.
SOURCES = {
    "domainnet": "GT-RIPL/FTP: README, main_finetune.py; network and rate of SGD: TPGM, DomainNet_ResNet_Exp. Chosen "
    "here: the linear probe's optimizer and rate, shares, radius_lr",
    "imagenet": "WiSE-FT: README (issue 6: also for ViT-B/16), finetune.py, warm-up: issue 17; head, -A and -R: TPGM, "
    "ImageNet_ViT_Exp. Chosen here: FTP's and the linear probe's rates, weight_decay (the default of WiSE-FT's code is "
    "0), kappa, radius_lr, shares, and a new head, free, in place of CLIP's zero-shot classifier",
}
