"""Runs that operators ask for. Redis keeps them; the keeper or a command executes them."""
