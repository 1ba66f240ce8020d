"""What is wrong after a load: messages against the ledger, counters against the table, member by member.

Nothing is sampled. Of the messages a byte or nine are kept for each row, of a counter one set of its members.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from redis import Redis

from loadtest.load import ledger
from loadtest.load.rows import read_token, row_of, token_of
from shared_models.declarations import COUNTERS, Counter
from shared_models.protocol import keys, steps
from shared_models.protocol.members import encode

# What this load sends, and hence what it can count.
COUNTED = [counter for counter in COUNTERS if counter.table.relation == "message"]
SHOWN = 3

UNKNOWN, ACKNOWLEDGED, STORED = 1, 2, 4


@dataclass
class Findings:
    """Sentences, and of each kind the first few examples."""

    found: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    numbers: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def note(self, what: str, example: object) -> None:
        self.numbers[what] += 1
        if self.numbers[what] <= SHOWN:
            self.found[what].append(str(example))

    def lines(self) -> list[str]:
        """One line for each kind."""
        return [f"{number:,} {what}: {', '.join(self.found[what])}" for what, number in self.numbers.items()]


@dataclass
class Sent:
    """What one producer has sent: for each row what is known of it, and the id that it was answered."""

    known: bytearray = field(default_factory=bytearray)
    ids: array[int] = field(default_factory=lambda: array("Q"))

    def note(self, entry: ledger.Entry) -> None:
        end = entry.first + entry.rows
        self.known.extend(bytes(max(0, end - len(self.known))))
        self.known[entry.first : end] = bytes([ACKNOWLEDGED if entry.acknowledged else UNKNOWN]) * entry.rows
        if entry.row_id:
            self.ids.extend([0] * (end - len(self.ids)))
            self.ids[entry.first] = entry.row_id

    def id_of(self, number: int) -> int:
        """0 where it was not told."""
        return self.ids[number] if number < len(self.ids) else 0


@dataclass
class Messages:
    """How many rows were acknowledged, how many are of unknown outcome, and what is wrong."""

    acknowledged: int = 0
    unknown: int = 0
    findings: Findings = field(default_factory=Findings)


def judge_messages(path: Path, table: Iterable[tuple[int, str, str, str, str]]) -> Messages:
    """Every row of the run in the table (id, state, city, username, message), against the ledger in this file.

    What was acknowledged is there, once, under the id that was told, as it was sent; what is of unknown outcome is
    there as a whole or not at all; and nothing is there that this run did not send.
    """
    run, entries = ledger.read(path)
    judged, sent, unknown = Messages(), defaultdict[int, Sent](Sent), []
    for entry in entries:
        sent[entry.producer].note(entry)
        if entry.acknowledged:
            judged.acknowledged += entry.rows
        else:
            judged.unknown += entry.rows
            unknown.append(entry)
    for row_id, *values in table:
        where = read_token(values[-1])
        if where is None or where[0] != run:
            continue  # somebody else's
        _, producer, number = where
        token = token_of(run, producer, number)
        of_producer = sent[producer]
        if number >= len(of_producer.known) or not of_producer.known[number]:
            judged.findings.note("rows are stored that were never sent", token)
            continue
        if of_producer.known[number] & STORED:
            judged.findings.note("rows are stored twice", token)
        of_producer.known[number] |= STORED
        if values != list(row_of(run, producer, number).values()):
            judged.findings.note("rows are not what was sent", token)
        if of_producer.id_of(number) not in (0, row_id):
            judged.findings.note("rows have another id than was answered", token)
    for producer, of_producer in sent.items():
        number = of_producer.known.find(ACKNOWLEDGED)  # and not STORED
        while number >= 0:
            judged.findings.note("acknowledged rows are missing from the table", token_of(run, producer, number))
            number = of_producer.known.find(ACKNOWLEDGED, number + 1)
    for entry in unknown:
        known = sent[entry.producer].known[entry.first : entry.first + entry.rows]
        if UNKNOWN in known and UNKNOWN | STORED in known:
            judged.findings.note("requests are stored in part", token_of(run, entry.producer, entry.first))
    return judged


def judge_counter(
    counter: Counter, rows: Iterable[Sequence[str]], redis: Redis, served: int | None
) -> tuple[int, list[str]]:
    """How many members the table has (`rows`: its SELECT DISTINCT), and where the set or the count differs.

    `served` is None where query gives no count.
    """
    findings = Findings()
    table = {encode(row) for row in rows}
    members = keys.of_counter(counter.name).members
    for some in steps.chunks(list(table)):
        for member, present in zip(some, redis.smismember(members, list(some)), strict=True):
            if not present:
                findings.note(f"members of {counter.name} are missing from the set", member.decode())
    for member in redis.sscan_iter(members, count=steps.CHUNK_MEMBERS):
        if member not in table:
            findings.note(f"members of {counter.name} have no row", member.decode(errors="backslashreplace"))
    lines = findings.lines()
    if served != len(table):
        said = "no count" if served is None else f"{served:,}"
        lines.append(f"{counter.name}: {said} is served, the table has {len(table):,}")
    return len(table), lines
