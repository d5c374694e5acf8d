"""The example that begins with ImageNet's weights and a new head."""

from examples.new_head import main


def test_it_scores_both_optimizers(cache, monkeypatch, capsys):
    monkeypatch.chdir(cache.parents[1])  # where the emoji are drawn already
    found = main(lrs=(1e-3,), seeds=(0,), steps=2)
    assert [*found] == [("AdamW", 1e-3), ("FTPAdamW", 1e-3)]
    assert all(0 <= score <= 100 for both in found.values() for score in both)
    assert "FTPAdamW  lr 0.001  ID" in capsys.readouterr().out
