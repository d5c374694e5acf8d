"""FTP's one-step radius gradients beside full hypergradients: how alike, at what cost, and which network is better."""
