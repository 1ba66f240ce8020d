"""Loads files into a table, and generates messages for a demo."""
