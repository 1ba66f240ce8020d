"""The reads from Postgres: snapshots, and their SQL."""
