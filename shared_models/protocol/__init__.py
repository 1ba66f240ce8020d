"""What both sides of a counter agree on: keys, members, states, and the atomic steps in Redis."""
