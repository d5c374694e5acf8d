"""The same question on tweets, whose network is a transformer."""
