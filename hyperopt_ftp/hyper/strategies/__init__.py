"""How training is differentiated: one strategy a file."""
