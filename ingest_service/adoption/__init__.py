"""Making a table of somebody else countable, and no longer: what `adopt` does, in the order catalog, fitness, plan, applying."""
