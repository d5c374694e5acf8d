"""The example that begins with ImageNet's weights and a new head."""

from examples import new_head
from experiments.classification.data import limit_items


def test_it_scores_both_optimizers(emoji, monkeypatch, capsys):
    monkeypatch.setattr(new_head, "emoji_pictures", lambda cache, progress: limit_items(emoji, 48, 0))
    found = new_head.main(lrs=(1e-3,), seeds=(0,), steps=2)
    assert [*found] == [("AdamW", 1e-3), ("FTPAdamW", 1e-3)]
    assert all(0 <= score <= 100 for both in found.values() for score in both)
    assert "FTPAdamW  lr 0.001  ID" in capsys.readouterr().out
