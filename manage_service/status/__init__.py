"""How everything stands, and what is wrong."""
