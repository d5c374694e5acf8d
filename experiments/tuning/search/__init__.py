"""Hypergradients against searches: how many hyperparameters make them worth their price."""
