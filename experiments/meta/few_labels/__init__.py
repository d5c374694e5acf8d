"""A few labels of the domain that counts, many of others: learned weights of examples against simple ways."""
