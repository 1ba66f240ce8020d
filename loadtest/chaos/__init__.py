"""Chaos: the whole stack under faults, its answers written down, and judged by what was written.

Four things that know nothing of each other, in the shape of Jepsen's tests:

    schedule, injecting          which faults, when (a seed says so), and keeping to it
    faults, wires                doing them
    clients, orders              producers, erasers, readers, operators; an application with a table of its own
    journal                      what they asked and what they were answered, outside the stack
    history, checker             pure functions: what the journal proves to be wrong

`rounds` lets faults and clients run for a while, then stops both and waits until the counters are exact by themselves; then it
deletes some rows, and waits again.
"""
