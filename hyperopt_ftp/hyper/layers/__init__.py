"""Layers of a network that are computed again where a derivative of them is taken."""
