"""The benchmark: each case beside its floor or its peer, in the same run, by turns. `python -m loadtest.bench`."""
