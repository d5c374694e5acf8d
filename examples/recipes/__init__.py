"""Methods of the literature, each as a program of at most 60 lines around hft.train."""
