"""How a set is kept true to the table: catch-up, build, reconcile, sweep."""
