"""What moves the weights: an update of our own, or a torch optimizer that is given."""
