"""Keeps the sets equal to the tables: builds cold counters, catches up, reconciles. Reads a replica, writes Redis."""
