"""What `adopt` and `adopt --undo` do to a table, in the order catalog, fitness, plan, applying."""
