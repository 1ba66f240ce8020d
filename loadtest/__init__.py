"""Puts the whole system under load, and under faults."""
