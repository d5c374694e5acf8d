"""Hyperparameters tuned by hypergradients: against search, by towers, and of FTP itself."""
