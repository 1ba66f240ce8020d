"""What puts the whole system under load, and under faults."""
