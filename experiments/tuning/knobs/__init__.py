"""The knobs of FTP, tuned by hypergradient on held-out pictures of another style."""
