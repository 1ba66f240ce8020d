"""What the services share about a counter: keys, members, states, and the atomic steps in Redis."""
