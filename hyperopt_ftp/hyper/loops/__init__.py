"""Loops over hypergradients: bilevel tuning, TPGM."""
