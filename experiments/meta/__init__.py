"""Learning to learn: from wrong labels, and from few pictures."""
