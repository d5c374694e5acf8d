"""Optimizers whose hyperparameters other optimizers tune."""
