"""What the services are measured against: the least that the same server can do, and the obvious way of doing it."""
