"""Files into the table, and messages for a demo."""
