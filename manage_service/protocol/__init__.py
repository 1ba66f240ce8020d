"""The protocol that keeps a set equal to the table: catch-up, build, reconcile, sweep."""
