"""Training on labels of which many are wrong: baselines, and weights of the examples learned by hypergradients."""
