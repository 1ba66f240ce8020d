"""The errors after a load: compares messages with the ledger, and counters with the table, member by member.

It checks everything, and takes no samples. It keeps one or nine bytes for each row, and a set of members for a counter.
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

# The fields that this load sends, and so can count.
COUNTED = [counter for counter in COUNTERS if counter.table.relation == "message"]
SHOWN = 3

UNKNOWN, ACKNOWLEDGED, STORED = 1, 2, 4


@dataclass
class Findings:
    """Kinds of errors, and the first few examples of each."""

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
    """The rows of one producer: for each its state, and the id in its answer."""

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
        """The id; 0 if the answer had none."""
        return self.ids[number] if number < len(self.ids) else 0


@dataclass
class Messages:
    """How many rows were acknowledged, how many have an unknown outcome, and the errors."""

    acknowledged: int = 0
    unknown: int = 0
    findings: Findings = field(default_factory=Findings)


def judge_messages(path: Path, table: Iterable[tuple[int, str, str, str, str]]) -> Messages:
    """Compare every row of the run in the table (id, state, city, username, message) with the ledger in this file.

    Acknowledged rows are there, once, with the id of the answer, unchanged. Requests with an unknown outcome are
    there completely or not at all. There are no rows that this run did not send.
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
            continue  # not of this run
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
    """How many members the table has (`rows`: its SELECT DISTINCT), and the differences to the set and the count.

    `served` is None if query gives no count.
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
