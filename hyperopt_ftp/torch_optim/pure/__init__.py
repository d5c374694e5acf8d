"""Pure optimizers on the parameters of a model."""
