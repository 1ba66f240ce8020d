"""What the services share: the tables, the counters, their members, keys and atomic steps."""

# Rollcall's version. pyproject.toml reads it here: without an installed package nothing else knows it.
__version__ = "0.1.0"
