"""The keeper: one process that catches up, builds, reconciles and takes samples, on schedule."""
