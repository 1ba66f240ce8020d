"""Which faults, and when: a seed gives a schedule that can be printed, and is the same each time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

SERVICES_AT_REDIS = ("ingest", "manage", "query")
WIRES = ("ingest-primary", "ingest-valkey", "manage-replica", "manage-valkey", "query-valkey", "replica-primary")
# Of a cluster: a primary and its replica each; and the wires to its servers.
SHARDS = ("shard-1", "shard-2", "shard-3")
CLUSTER_WIRES = tuple(f"valkey-{number}" for number in range(1, 2 * len(SHARDS) + 1))

# Average seconds between the starts of two faults. Several are active at a time.
SPACING_SECONDS = 0.4
# No fault begins in the last part of a round, so that most have ended.
QUIET_SECONDS = 1.0


@dataclass(frozen=True)
class Kind:
    """One way to fail. `hows` are its variants; `weight` is how often it is drawn compared with the others."""

    name: str
    targets: tuple[str, ...]
    shortest_seconds: float
    longest_seconds: float
    hows: tuple[str, ...] = ("",)
    weight: float = 1.0
    # Other processes that take part; they have no other fault meanwhile.
    beside: tuple[str, ...] = ()


# Values that somebody with a console may write into a counter's hashes, and the protocol never does. They do not include
# possible numbers: for example, nobody can recognise a watermark that is a little too low.
POISONED = {
    "intake": ("size", "build", "fill", "watermark", "watermark_source"),
    "state": (
        "cursor",
        "source",
        "build",
        "complete_through",
        "verified_at",
        "missing",
        "watermark_reset_at",
        "left_through",
    ),
}
NONSENSE = (
    "9" * 25,
    "soon",
    "-5",
    "250246368000000000",
    "",
)  # the last number is a moment of the year 9900, or an xact far away
POISONS = tuple(
    f"{key}.{field} = {value}" for key, fields in POISONED.items() for field in fields for value in NONSENSE
)
# What somebody does by hand to the keys of a counter, by what holds its elements: see `tampering`.
OF_ALL = (
    "remove members", "add members", "delete the set", "delete the intake", "delete set and intake", "delete the state",
    "a text for the set", "a text for the intake", "a text for the state",
)  # fmt: skip
OF_DAYS = ("delete the days", "raise a day", "lower a day", "a word for a day", "a text for the days")
OF_GROUPS = (
    "delete a group", "remove members of a group", "add a member to a group", "a text for a group",
    "raise a group's size", "lower a group's size", "take a group out", "put a group in", "delete the directory",
    "delete the names", "a text for the names", "delete the generation", "delete the intake", "delete the state",
    "a text for the directory", "a text for the intake", "a text for the state", "a text for the broken groups",
)  # fmt: skip
SETS, LAST_SEEN = ("cities", "branches"), ("users", "customers")
GROUPED = (
    "users:state", "users:day(create_time)", "customers:branch", "customers:day(placed_at)",
    "customers:branch,week(placed_at)",
)  # fmt: skip
LOST_GENERATIONS = tuple(f"intake.generation = {value}" for value in NONSENSE)
REWRITES = ("another type", "loaded again with the old xacts", "loaded again with new xacts")

# The stack's time-outs are 1 s (ingest to Valkey), 0.5 s (query to Valkey), 5 s (manage to Valkey), 3 s (ingest to the
# primary, as set in stack.py), 7 s (manage to the replica); the keeper's lease runs for 9 s.
KINDS = (
    Kind("kill", ("ingest worker",), 0.1, 0.1, ("0", "1"), 1.5),
    Kind("kill", ("keeper",), 0.2, 2.0, weight=0.8),
    Kind("kill", ("ingest", "query", "manage"), 0.2, 2.0),
    Kind("kill", ("replica", "primary"), 0.2, 1.5, weight=1.2),
    Kind(
        "kill valkey", ("valkey",), 0.2, 1.5, ("restart empty", "restart from an older save", "restart with AOF"), 2.5
    ),
    Kind("stop", ("ingest worker",), 0.5, 4.0, ("0", "1")),
    Kind("stop", ("keeper",), 0.5, 4.0),
    Kind("stop", ("query",), 0.5, 2.0, weight=0.5),
    Kind("stop", ("valkey",), 0.3, 2.5, weight=1.5),
    Kind("stop", ("primary",), 0.5, 4.5),
    Kind("stop", ("replica",), 0.5, 4.0),
    Kind("stop for long", ("keeper", "replica"), 12.5, 13.5, weight=0.2),
    Kind("stop for long", ("valkey",), 5.5, 6.5, weight=0.2),
    Kind("replay paused", ("replica",), 1.0, 5.0, weight=2.0),
    Kind("cut", WIRES, 0.05, 0.3, weight=2.0),
    Kind("refuse", WIRES, 0.3, 2.0),
    Kind("delay", WIRES, 0.5, 3.0, ("0.05", "0.3")),
    Kind("hold", WIRES, 0.5, 4.0, weight=1.5),
    Kind("half-open", WIRES, 0.5, 4.0),
    Kind("reset during COMMIT", ("ingest-primary",), 0.2, 1.0, ("before", "after"), 1.5),
    Kind("read only", ("primary",), 0.5, 2.0),
    Kind("statements time out", ("primary",), 0.5, 2.0),
    Kind("table locked", ("primary",), 0.5, 2.5),
    Kind("writes refused", ("valkey",), 0.5, 2.5, weight=1.5),
    Kind("transaction left open", ("a transaction",), 1.0, 6.0, ("commit", "roll back")),
    Kind("deletes left open", ("a transaction of deletes",), 1.0, 6.0, ("commit", "roll back")),
    Kind("triggers disabled", ("orders",), 0.5, 2.0, weight=0.4),
    Kind("departures pruned", ("keeper",), 0.5, 2.0, weight=0.7),
    Kind("wrong clock", ("ingest",), 1.0, 4.0, ("-3600", "+3600"), 0.7),
    Kind("changed by hand", SETS, 0.1, 0.1, OF_ALL, 1.5),
    Kind("changed by hand", LAST_SEEN, 0.1, 0.1, (*OF_ALL, *OF_DAYS, *OF_DAYS), 2.0),
    Kind("changed by hand", GROUPED, 0.1, 0.1, OF_GROUPS, 3.0),
    Kind("poison", (*SETS, *LAST_SEEN, *GROUPED), 0.1, 0.1, POISONS, 2.0),
    Kind("poison", GROUPED, 0.1, 0.1, LOST_GENERATIONS, 0.5),
    Kind("scripts forgotten", ("scripts",), 0.1, 0.1),
    Kind("killed while mending", ("keeper",), 3.0, 6.0, GROUPED),
    Kind("table rewritten", ("table",), 0.5, 2.0, REWRITES, beside=("manage-replica",)),
    Kind("row level security", ("table",), 0.5, 3.0, ("all rows", "some rows"), 0.7),
    Kind("kill backend", ("primary",), 0.5, 0.5, weight=0.7),
    Kind("burn xids", ("primary",), 1.0, 2.0, weight=0.7, beside=("ingest-primary",)),
    Kind(
        "promotion",
        ("primary",),
        *(0.5, 3.0),
        ("clean", "connected before"),
        weight=0.5,
        beside=("replica", "replica-primary", "ingest-primary", "manage-replica"),
    ),
)
# Those of a cluster, in place of those of one server. A primary has failed when it has been silent for a second.
CLUSTER_KINDS = (
    Kind("kill node", SHARDS, 0.2, 3.5, ("primary", "primary", "replica", "both"), 3.0),
    Kind("stop node", SHARDS, 0.3, 3.0, ("primary", "primary", "replica"), 3.0),
    Kind("cut off", SHARDS, 1.5, 3.0, weight=2.0),
    Kind("failover", SHARDS, 0.3, 1.0, ("once", "twice", "by force"), 4.0),
    Kind("slots moved", SHARDS, 0.3, 2.0, ("to the next", "to the next and back", "to the last and back"), 3.0),
    Kind("flushed", SHARDS, 0.1, 0.1),
    Kind("writes refused", SHARDS, 0.5, 2.5),
    Kind("cut", CLUSTER_WIRES, 0.05, 0.3, weight=1.5),
    Kind("refuse", CLUSTER_WIRES, 0.3, 2.0),
    Kind("delay", CLUSTER_WIRES, 0.5, 3.0, ("0.05", "0.3")),
    Kind("hold", CLUSTER_WIRES, 0.5, 4.0),
    Kind("half-open", CLUSTER_WIRES, 0.5, 4.0),
)
NAMES = tuple(dict.fromkeys(kind.name for kind in (*KINDS, *CLUSTER_KINDS)))


@dataclass(frozen=True)
class Fault:
    """One fault: from `at_seconds` of its round on, for `seconds`."""

    number: int
    at_seconds: float
    seconds: float
    kind: str
    target: str
    how: str

    def __str__(self) -> str:
        how = f" ({self.how})" if self.how else ""
        return f"{self.at_seconds:6.2f} s  {self.kind}: {self.target}{how}, for {self.seconds:.2f} s"


@dataclass(frozen=True)
class Options:
    """The options of one round."""

    producers: int
    erasers: int
    readers: int
    applications: int
    clerks: int
    analysts: int
    # The runs of an operator end after the round, and hide the effect of departures.
    operators: int
    # Names that are erased and come back; with few names this happens more often.
    recycled_names: int
    batch_rows: int
    faults: tuple[Fault, ...]


def kinds_of(names: Sequence[str], *, single: bool = False, cluster: bool = False) -> list[Kind]:
    """The kinds with these names. `single`: without faults of a replica, because there is none. `cluster`: Redis is one."""
    kinds = [kind for kind in (*KINDS, *(CLUSTER_KINDS if cluster else ())) if kind.name in names]
    without = {"replica", "replica-primary"} if single else set()
    if cluster:
        without |= {"valkey", *(f"{service}-valkey" for service in SERVICES_AT_REDIS)}
    kinds = [replace(kind, targets=tuple(t for t in kind.targets if t not in without)) for kind in kinds]
    return [kind for kind in kinds if kind.targets and not without & set(kind.beside)]


def expand(
    seed: int,
    round_number: int,
    seconds: float,
    kinds: Sequence[str] = NAMES,
    *,
    single: bool = False,
    cluster: bool = False,
) -> Options:
    """The options of one round."""
    random = Random(f"{seed}/{round_number}")
    return Options(
        producers=random.randint(4, 8),
        erasers=random.randint(1, 2),
        readers=random.randint(2, 3),
        applications=random.randint(1, 2),
        clerks=random.randint(1, 2),
        analysts=random.randint(1, 2),
        operators=random.randint(0, 1),
        recycled_names=random.choice((5, 20, 80)),
        batch_rows=random.choice((5, 20)),
        faults=tuple(draw_faults(random, seconds, kinds_of(kinds, single=single, cluster=cluster))),
    )


def draw_faults(random: Random, seconds: float, kinds: list[Kind]) -> list[Fault]:
    """Faults for this many seconds. Two faults never have the same target at the same time."""
    # Each round leaves out some kinds: a frequent fault can hide the effect of another one (swarm testing).
    drawn_from = [kind for kind in kinds if random.random() < 0.8] or kinds
    faults: list[Fault] = []
    busy_until: dict[str, float] = {}
    at = 0.0
    while (at := at + random.expovariate(1 / SPACING_SECONDS)) < seconds - QUIET_SECONDS:
        (kind,) = random.choices(drawn_from, [kind.weight for kind in drawn_from])
        target, how = random.choice(kind.targets), random.choice(kind.hows)
        lasts = min(random.uniform(kind.shortest_seconds, kind.longest_seconds), seconds - at)
        servers = (target.split()[0], *kind.beside)  # "ingest worker" is a part of "ingest"
        if any(busy_until.get(server, 0.0) > at for server in servers):
            continue
        busy_until |= dict.fromkeys(servers, at + lasts + 0.2)
        faults.append(Fault(len(faults) + 1, round(at, 3), round(lasts, 3), kind.name, target, how))
    return faults
