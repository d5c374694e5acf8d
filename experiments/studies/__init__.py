"""All studies with one command, and what of them is kept in the repository."""
