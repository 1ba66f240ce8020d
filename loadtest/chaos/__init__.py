"""Chaos: the whole stack under faults. A journal keeps its answers, and a checker judges them.

Parts that do not know each other, in the shape of Jepsen's tests:

    schedule, injecting          which faults, and when, from a seed; and following the schedule
    faults, wires                injecting the faults
    clients, orders              producers, erasers, readers, operators; an application with a table of its own
    journal                      their requests and the answers, outside the stack
    history, checker             pure functions: the errors that the journal proves

`rounds` lets faults and clients run for a while, then stops both and waits until the counters are exact without help; then
it deletes some rows, and waits again.
"""
