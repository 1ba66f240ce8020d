"""What clients meet alike at all three services: the shape of an error, and the log line of a request."""
