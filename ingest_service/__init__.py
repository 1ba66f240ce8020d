"""Ingest takes messages over HTTP, stores them on the primary, then counts them in Redis. Start with `recording`."""
