"""Steps forward and back: what is kept of them, and how they run."""
