"""Drop-in ``torch.optim`` classes, one file each: the only layer that mutates and picks backends."""
