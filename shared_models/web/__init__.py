"""What clients meet alike at all three services: problems, tokens, the log line of a request."""
