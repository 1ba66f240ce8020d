"""The benchmark: each case next to its floor or its peer, in the same run, alternating. `python -m loadtest.bench`."""
