"""What is read from Postgres: snapshots, and the SQL of the questions."""
