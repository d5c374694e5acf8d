"""Learning to learn: from wrong labels, from few pictures, with few pictures, and how to step."""
