"""Steps as programs of torch.compile: what is traced, compiled and kept of them."""
