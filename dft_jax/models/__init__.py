"""Models: parameters as plain trees, and functions of them."""
