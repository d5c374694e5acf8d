"""Hugging Face's Trainer: it builds the optimizer from its model, with names.

python -m examples.finetune_transformers
"""

from __future__ import annotations

import tempfile

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import hyperopt_ftp as hft
from hyperopt_ftp.integrations.transformers import optimizer_cls_and_kwargs


def main() -> None:
    torch.manual_seed(0)
    size = BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    model = BertForSequenceClassification(size)  # yours: from_pretrained(...)
    data = [{"input_ids": torch.randint(25, (8,)) + 25 * (i % 2), "labels": i % 2} for i in range(64)]
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            TrainingArguments(folder, max_steps=24, warmup_steps=4, use_cpu=True, disable_tqdm=True, report_to="none"),
            train_dataset=data,  # pyright: ignore[reportArgumentType]
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs(
                hft.FTPAdamW, lr=1e-3, weight_decay=0.01, exclude="classifier.*"
            ),
        )
        print(trainer.train().metrics)
    radii = trainer.optimizer.optimizer.radii()  # pyright: ignore  # Accelerate's wrapper is around it
    print("radii of the last layer:", {n: round(radius, 4) for n, radius in radii.items() if ".layer.1.output" in n})


if __name__ == "__main__":
    main()
