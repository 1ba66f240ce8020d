"""The write path: commit rows on the primary, then count them in Redis."""
