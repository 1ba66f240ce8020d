"""Serves the counts from Redis alone: counts from memory, memberships, an event stream and a page. No database."""
