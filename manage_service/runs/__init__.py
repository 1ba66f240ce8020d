"""Runs that operators ask for: kept in Redis, executed by the keeper or by a command."""
