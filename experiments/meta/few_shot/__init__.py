"""Few-shot learning across drawing styles."""
