"""The table at the end of a run."""

from __future__ import annotations

import statistics
from collections import Counter as Tally
from collections.abc import Iterable, Sequence
from math import inf

from loadtest.chaos.rounds import Result


def lines(results: Sequence[Result]) -> Iterable[str]:
    """The faults, the judged answers, the violations."""
    faults = Tally((fault.kind, fault.target) for result in results for fault in result.faults)
    requests = [request for result in results for request in result.history.requests.values()]
    acknowledged = [request for request in requests if request.acknowledged < inf]
    verdicts = [result.verdict for result in results]
    rests = [result.rest for result in results]
    times = [rest.exact_seconds for rest in rests if rest.exact_seconds is not None]
    left = [rest.left_seconds for rest in rests if rest.left_seconds is not None]
    yield "| fault | times |"
    yield "|---|---:|"
    for kind in dict.fromkeys(kind for kind, _ in sorted(faults)):
        targets = {target: times for (of, target), times in sorted(faults.items()) if of == kind}
        yield f"| {kind}: {', '.join(f'{target} {n}' for target, n in targets.items())} | {sum(targets.values())} |"
    yield f"| **all faults** | **{faults.total():,}** |"
    if promotions := sum(result.promotions for result in results):
        yield f"| replicas of Redis that were promoted | {promotions} |"
    yield ""
    yield "| judged | |"
    yield "|---|---:|"
    yield f"| requests acknowledged | {len(acknowledged):,} |"
    yield f"| … with so many rows | {sum(len(request.rows) for request in acknowledged):,} |"
    yield f"| … counted at once | {sum(request.counted < inf for request in acknowledged):,} |"
    yield f"| requests with an outcome that stayed unknown | {sum(unknown(request) for request in requests):,} |"
    yield f"| requests repeated | {sum(request.attempts > 1 for request in requests):,} |"
    yield f"| erases | {sum(erase.done for result in results for erase in result.history.erases):,} |"
    yield f"| counts | {sum(verdict.counts for verdict in verdicts):,} |"
    grouped = sum("?" in count.counter for result in results for count in result.history.counts)
    yield f"| … of a group or a window | {grouped:,} |"
    yield f"| memberships | {sum(verdict.memberships for verdict in verdicts):,} |"
    looked = sum(len(a.asked) for result in results for a in result.history.memberships if "?" in a.counter)
    yield f"| … of a group, or since a day | {looked:,} |"
    yield f"| **wrong answers** (P2, P4, P7) | **{sum(verdict.broken('P2', 'P4', 'P7') for verdict in verdicts)}** |"
    yield f"| **rows lost or stored twice** (P1) | **{sum(verdict.broken('P1') for verdict in verdicts)}** |"
    for service in ("ingest", "query"):
        yield f"| slowest answer of {service} | {slowest(results, service):.1f} s |"
    never = len(results) - len(times)
    if times:
        worst = f"{max(times):.1f} s" if not never else f"never, in {never} rounds"
        yield f"| exact after the faults: median, worst of {len(results)} rounds | {statistics.median(times):.1f} s, {worst} |"
    else:
        yield f"| exact after the faults, in {len(results)} rounds | never |"
    if left:
        seconds = f"{statistics.median(left):.1f} s, {max(left):.1f} s"
        yield f"| … and after deletes at rest (P6): median, worst | {seconds} |"
        alone, counters = sum(rest.unreconciled for rest in rests), sum(rest.counters for rest in rests)
        yield f"| counters that these left without a reconcile | {alone} of {counters} |"


def unknown(request: object) -> bool:
    """Neither acknowledged nor refused by every attempt."""
    return request.acknowledged == inf and not request.surely_not_stored  # type: ignore[attr-defined]


def slowest(results: Sequence[Result], service: str) -> float:
    """The longest wait in seconds for a service that was neither stopped nor killed meanwhile."""
    return max(
        (
            wait.ended - wait.began
            for result in results
            for wait in result.history.waits
            if wait.service == service
            and not any(s == service and a <= wait.ended and b >= wait.began for s, a, b in result.history.stops)
        ),
        default=0.0,
    )
