"""Keeps the sets equal to the table: builds cold counters, catches up, reconciles. Reads a replica, writes Redis."""
