"""Weights made of fine-tuned ones and their anchor: after training (WiSE-FT, LiNeS, Model Stock) or in it (Mixout)."""
