"""Tables by months: a table becomes partitioned, and old partitions are retired."""
