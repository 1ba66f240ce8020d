"""What all three services have in common for clients: problems, tokens, the log line of a request."""
