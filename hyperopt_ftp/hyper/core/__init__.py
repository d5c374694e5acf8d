"""One inner step as a pure function, its derivatives, and training as a node of the autograd graph."""
