"""The page for people, with its charts: what Django is there for."""
