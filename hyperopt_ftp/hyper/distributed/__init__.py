"""Training on many processes, each with its shard of a batch or of the params."""
