"""What two services would be wrong to disagree about: the table, the counters, their members, keys and atomic steps."""
