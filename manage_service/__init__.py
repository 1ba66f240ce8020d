"""Keeps the sets true to the table: builds cold counters, catches up, reconciles. Reads a replica, writes Redis."""
