"""The drop-in classes, one a file, and what helps to build them."""
