"""Ingest: messages come in by HTTP, are stored on the primary, then counted in Redis. Begin with `recording`."""
