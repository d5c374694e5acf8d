"""What is refused, with what error; names of parameters."""
