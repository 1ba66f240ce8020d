"""The local stack: the real servers from wheels, the three services, and the commands that start and end them."""
