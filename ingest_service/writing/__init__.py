"""The way of a row: committed on the primary, then counted in Redis."""
