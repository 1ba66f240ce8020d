"""Manage over HTTP: the API, the console, the metrics."""
