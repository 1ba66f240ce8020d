"""What operators reach over HTTP: the API, the console, the metrics."""
