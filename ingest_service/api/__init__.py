"""The requests of producers, and the answers."""
