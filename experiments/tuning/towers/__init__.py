"""Does a tower of optimizers forgive a wrong learning rate, from how far away, and at what cost?"""
