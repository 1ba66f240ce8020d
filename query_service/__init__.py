"""Serves the counts from Redis alone: standing answers, memberships, an event stream and a page. No database."""
