"""What a hypergradient will take, before it is computed."""
