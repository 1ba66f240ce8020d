"""The page for people, with its charts. Only this needs Django."""
