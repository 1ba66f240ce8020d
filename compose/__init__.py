"""How Rollcall is run: containers, the edge, the stores' roles and what watches them; `local/` runs all of it on this machine."""
