"""What two services would be wrong to disagree about: the table, the counters, their members, keys and atomic steps."""

# Rollcall's. pyproject.toml reads it here: where it is not installed as a package, nothing else would know.
__version__ = "0.1.0"
