"""The errors that the history of a round proves. Pure functions; each bound has its reason next to it.

Three moments decide what a row proves about an answer:

    gone_at    the beginning of the first erase that may have met the row: one that matches it, was not refused, and had
               not ended before the row was first sent. Before that moment the row, once acknowledged, is in the table.
    lost_at    the beginning of the first loss of its part that had not ended before the row was counted: a kill of Valkey, a
               replica that took the place of a primary without having all of it, or a set that was deleted by hand. Before that
               moment Redis has lost nothing of it.
    stale_until
               the end of the time in which a server without the row may have answered: before the row was counted it had been
               replaced, or its slots had been moved, and it had not heard of that.

A counter is whatever was asked: "users", those of one group, those that were seen since a day: see `history.Question`.

A loss excuses only this: Redis no longer counts a row that ingest has counted, and that the replica does not show yet. Only
the primary knows the row then. A loss excuses nothing else. `complete_through` is still true, and query serves no partial
set, and no member that was added by hand.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import inf

from loadtest.chaos.history import Count, Member, Membership, Request, Round, Row


@dataclass(frozen=True)
class Violation:
    """A broken promise, and the operation of the journal that shows it (0: the table in the end)."""

    promise: str
    what: str
    n: int = 0

    def __str__(self) -> str:
        return f"{self.promise}: {self.what}" + (f" (operation {self.n})" if self.n else "")


@dataclass
class Verdict:
    """What was judged, and the violations."""

    violations: list[Violation] = field(default_factory=list)
    counts: int = 0
    memberships: int = 0

    def broken(self, *promises: str) -> int:
        """How many violations there are of these promises."""
        return sum(violation.promise in promises for violation in self.violations)


@dataclass(frozen=True)
class Fact:
    """One row, and the moments between which facts about it are known."""

    row: Row
    acknowledged_wall: float
    gone_at: float
    counted: float
    lost_at: float
    stale_until: float = -inf

    def surely_complete(self, through_wall: float | None, until: float) -> bool:
        """P7: an answer that claims to be complete through a moment has to count this row.

        The acknowledgement came before that moment, so the commit was before it, on the same clock. No erase
        had begun when the answer arrived, so the row existed when the set was read.
        """
        return through_wall is not None and self.acknowledged_wall < through_wall and until <= self.gone_at

    def surely_counted(self, began: float, ended: float) -> bool:
        """P2: a read within these times finds the member.

        It was counted before the read began, Redis lost nothing before the read had ended, and no erase had begun: the
        row was there all the time, so nothing had a reason to remove the member. And only the server that had it answered.
        """
        return max(self.counted, self.stale_until) <= began and ended <= min(self.lost_at, self.gone_at)


def judge(now: Round, limits: Mapping[str, float] | None = None) -> Verdict:
    """All violations that the history of this round proves."""
    verdict = Verdict()
    asked = {count.counter for count in now.counts} | {answer.counter for answer in now.memberships}
    for counter in sorted(asked):
        known = facts(now, counter)
        counts = [count for count in now.counts if count.counter == counter]
        memberships = [answer for answer in now.memberships if answer.counter == counter]
        verdict.counts += len(counts)
        verdict.memberships += sum(len(answer.asked) for answer in memberships)
        verdict.violations += judge_counts(counter, counts, known, now)
        verdict.violations += judge_memberships(counter, memberships, counts, known, now)
    verdict.violations += judge_requests(now.requests.values())
    verdict.violations += judge_waits(now, limits or {})
    if now.final is not None:
        verdict.violations += judge_table(now, now.final)
    return verdict


def facts(now: Round, counter: str) -> list[Fact]:
    """The facts about every acknowledged row of this counter, and its possible loss from the counter.

    Those of the base were acknowledged when the table was read.
    """
    base = (row for row in now.base if row.member(counter) is not None)
    found = [Fact(row, now.base_wall, gone_at(now, row, -inf), inf, inf) for row in base]
    for request in now.requests.values():
        if request.acknowledged < inf:
            losses = [loss for loss in now.losses if loss.ended >= request.counted_began]
            stale = [each for each in now.stale if each.began <= request.counted < inf]
            for row in request.rows:
                member = row.member(counter)
                if member is not None:
                    lost_at = min((loss.began for loss in losses if loss.concerns(counter, member)), default=inf)
                    gone = gone_at(now, row, request.began)
                    stale_until = max((each.ended for each in stale if each.concerns(counter, member)), default=-inf)
                    found.append(Fact(row, request.acknowledged_wall, gone, request.counted, lost_at, stale_until))
    return found


def gone_at(now: Round, row: Row, sent: float) -> float:
    """See the head of this module. `sent`: when the row was, which is once in a round."""
    if row.token not in now.gone:
        met = (e.began for e in now.erases if not e.refused and e.ended > sent and e.matches(row))
        now.gone[row.token] = min(met, default=inf)
    return now.gone[row.token]


def judge_counts(counter: str, counts: list[Count], known: list[Fact], now: Round) -> Iterable[Violation]:
    """P4, P7, P2: every count lies between what must and what may be counted."""
    # Rows of the base that nothing happened to are in every claim that reaches beyond the base: counted once for all.
    constant = {f.row.member(counter) for f in known if f.acknowledged_wall == now.base_wall and f.gone_at == inf}
    moving = [(f, member) for f in known if (member := f.row.member(counter)) not in constant]
    # What may be counted: the set was equal to the base, and only what was sent since can have come; what was refused by
    # every attempt cannot. Sorted, so that "before this answer" is a search.
    base = {row.member(counter) for row in now.base} - {None}
    came: dict[Member, float] = {}
    for request in now.requests.values():
        for row in request.rows if not request.surely_not_stored else ():
            if (member := row.member(counter)) is not None:
                came[member] = min(came.get(member, inf), request.began)
    came_at = sorted(began for member, began in came.items() if member not in base)
    for answer in counts:
        through = answer.complete_through_wall
        if through is None:
            yield Violation("P4", f"{counter}: the count {answer.count} does not say how complete it is", answer.n)
        must = {member for f, member in moving if f.surely_complete(through, answer.ended)}
        if through is not None and through > now.base_wall:
            must |= constant
        if answer.count < len(must):
            yield Violation(
                "P7", f"{counter}: {answer.count} counted, at least {len(must)} were acknowledged before", answer.n
            )
        elif answer.fresh and answer.live:
            must |= {member for f, member in moving if f.surely_counted(answer.began, answer.ended)}
            if answer.count < len(must):
                yield Violation("P2", f"{counter}: {answer.count} counted, {len(must)} said to be counted", answer.n)
        most = len(base) + bisect_left(came_at, answer.ended)
        if answer.count > most:
            yield Violation("P4", f"{counter}: {answer.count} counted, only {most} were ever sent", answer.n)


def judge_memberships(
    counter: str, answers: list[Membership], counts: list[Count], known: list[Fact], now: Round
) -> Iterable[Violation]:
    """P2, P7, P4, member by member. Earlier answers judge a "no"; the sent rows judge a "yes"."""
    by_member: dict[Member | None, list[Fact]] = {}
    for fact in known:
        by_member.setdefault(fact.row.member(counter), []).append(fact)
    sent: dict[Member | None, float] = {row.member(counter): -inf for row in now.base}
    for request in now.requests.values():
        for row in request.rows:
            sent.setdefault(row.member(counter), request.began)
    for answer in answers:
        claim = latest_claim(answer, counts)
        for member, found in zip(answer.asked, answer.found, strict=True):
            if found and sent.get(member, inf) > answer.ended:
                yield Violation("P4", f"{counter}: {member} is counted, and was never sent", answer.n)
            if found:
                continue
            of_member = by_member.get(member, [])
            if any(fact.surely_counted(answer.began, answer.ended) for fact in of_member):
                yield Violation("P2", f"{counter}: {member} was said to be counted, and is not", answer.n)
            elif (
                claim
                and not is_lost(answer, claim, member, now)
                and any(f.surely_complete(claim.complete_through_wall, answer.ended) for f in of_member)
            ):
                through = f"was acknowledged before complete_through of operation {claim.n}"
                yield Violation("P7", f"{counter}: {member} {through}, and is not counted", answer.n)


def latest_claim(answer: Membership, counts: list[Count]) -> Count | None:
    """The last count before this answer that was read from Redis itself.

    The set had every row of the claim then; only a sweep can have removed one since, and only without its row.
    """
    return next((c for c in reversed(counts) if c.ended <= answer.began and c.fresh and c.live), None)


def is_lost(answer: Membership, claim: Count, member: Member, now: Round) -> bool:
    """Whether Redis may have lost the member between the claim and the answer, or the answer may be of a server without it."""
    lost = (each for each in now.losses if each.began <= answer.ended and each.ended >= claim.began)
    stale = (each for each in now.stale if each.began <= claim.ended and each.ended >= answer.began)
    return any(each.concerns(answer.counter, member) for each in (*lost, *stale))


def judge_requests(requests: Iterable[Request]) -> Iterable[Violation]:
    """P1, from the answers alone: a retry gets the first answer."""
    for request in requests:
        if any(answer != request.answers[0] for answer in request.answers):
            yield Violation("P1", f"one Idempotency-Key, different answers: {request.answers}")


def judge_table(now: Round, final: list[Row]) -> Iterable[Violation]:
    """P1: acknowledged rows are stored, once; refused ones are not; there are no others."""
    there = Tally(row.token for row in final)
    for row in now.base:
        if not there[row.token] and gone_at(now, row, -inf) == inf:
            yield Violation("P1", f"{row} was there, was not erased, and is gone")
    known = {row.token for row in now.base}
    for request in now.requests.values():
        known.update(row.token for row in request.rows)
        kept = [row for row in request.rows if gone_at(now, row, request.began) == inf]
        present = [row for row in kept if there[row.token]]
        for row in request.rows:
            if there[row.token] > 1:
                yield Violation("P1", f"{row} was sent under one key, and is stored {there[row.token]} times")
            if request.surely_not_stored and there[row.token]:
                yield Violation("P1", f"{row} was refused, and is stored")
            # An erase that began after the acknowledgement saw the row, and its effect is permanent.
            if there[row.token] and any(
                e.done and e.began > request.acknowledged and e.matches(row) for e in now.erases
            ):
                yield Violation("P1", f"{row} was erased, and is stored")
        if request.acknowledged < inf and len(present) < len(kept):
            lost = [row for row in kept if not there[row.token]]
            yield Violation("P1", f"acknowledged, not erased, and lost: {lost}")
        elif present and len(present) < len(kept):
            yield Violation("P1", f"stored in part: {len(present)} of {len(kept)} rows of one request")
    for token in there.keys() - known:
        yield Violation("P1", f"a row that nobody sent: {token}")


def judge_waits(now: Round, limits: Mapping[str, float]) -> Iterable[Violation]:
    """No request waits longer than its limit, except if its own service was killed or stopped meanwhile."""
    for wait in now.waits:
        seconds = wait.ended - wait.began
        halted = any(s == wait.service and a <= wait.ended and b >= wait.began for s, a, b in now.stops)
        if seconds > limits.get(wait.service, inf) and not halted:
            yield Violation("limits", f"{wait.service} took {seconds:.1f} s", wait.n)
