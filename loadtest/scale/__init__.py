"""Sizes and times at scale, next to what the formulas of docs/sizing.md say: `make scale`."""
