"""The state of everything, and the findings."""
