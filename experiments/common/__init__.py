"""What every study shares: checkpoints, run record, progress, figures, the training loop."""
