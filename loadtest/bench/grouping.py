"""Groups and last days: what recording them, building them and keeping them costs, next to one plain counter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from redis import Redis

from loadtest.bench import rows, visits
from loadtest.bench.ingesting import Batches
from loadtest.bench.reconciling import floor, run
from loadtest.bench.results import Report, Result, by_turns, paired
from loadtest.bench.world import World, run_sql, wait_until_replayed
from shared_models import declarations
from shared_models.protocol import elements, keys, steps

MESSAGE = """
[tables.message]
name = "public.message"
fields = {state = "varchar", city = "varchar", username = "varchar", create_time = "timestamptz"}
ingest = true

[counters.users]
table = "message"
member = ["username"]
"""
# One counter, and one with two groups and the last day: three derived counters, because the last day takes the place of the set.
PLAIN, GROUPED = MESSAGE, MESSAGE + 'by = ["state", ["state", "city"]]\nlast_seen = "create_time"\n'
BATCHES = 30
DAY = "2026-11-27"

BUILDS = f"""{visits.FIELDS}
[counters.plain]
table = "visit"
member = ["visitor"]
by = ["day(seen_at)", "page"]

[counters.seen]
table = "visit"
member = ["visitor"]
last_seen = "seen_at"
"""
SEEN_ON = "(timezone('UTC', seen_at))::date"
# What a build cannot do without: read the elements, and put each of them into a set.
FLOORS = {
    "plain": "SELECT DISTINCT visitor FROM web.visit",
    "seen": f"SELECT visitor, max({SEEN_ON})::text FROM web.visit GROUP BY visitor",
    "plain:day(seen_at)": f"SELECT DISTINCT {SEEN_ON}::text, visitor FROM web.visit",
    "plain:page": "SELECT DISTINCT page, visitor FROM web.visit",
}

MEMBERS = 200_000
DAYS_SEEN = 12
BYTES_A_MEMBER, BYTES_A_GROUP = 41, 110


def recording(world: World, report: Report, rounds: int, table_rows: int) -> None:
    """recording.groups: processor time of Redis for a member, with batches of 10,000 rows and nothing else."""
    batches = [{(row["state"], row["city"], row["username"]) for row in rows.batch(seed)} for seed in range(BATCHES)]
    for what in ("new", "known"):
        found = by_turns(
            rounds,
            {
                name: partial(redis_us, world, text, batches, known=what == "known")
                for name, text in (("plain", PLAIN), ("grouped", GROUPED))
            },
        )
        report.add(
            Result(f"recording.groups.{what}", "µs a row", "one plain counter, µs a row", paired(found, "grouped", "plain"),
                   note="total with last day, 50 groups, 5,000 groups; processor time of Redis alone")
        )  # fmt: skip


def redis_us(world: World, text: str, batches: list[set[tuple[str, str, str]]], *, known: bool) -> float:
    """Microseconds of Redis' processor for a row of these batches, into empty counters; `known`: the second time."""
    world.declare(text)
    made = [
        {
            part.name: some
            for each in declarations.kept()
            for part, some in elements.by_part(
                each, elements.encode_all(each, {pick(row, each.terms) for row in batch})
            )
        }
        for batch in batches
    ]
    with world.redis() as redis:
        redis.flushdb()
        steps.load_scripts(redis)
        for _ in range(2 if known else 1):
            before = busy_seconds(redis)
            for batch in made:
                steps.record(redis, batch, 5, "1/1/1")
        return (busy_seconds(redis) - before) * 1e6 / (len(batches) * rows.BATCH_ROWS)


def pick(row: tuple[str, str, str], terms: tuple[object, ...]) -> tuple[str, ...]:
    """The values of a row that these terms are."""
    values = dict(zip(("state", "city", "username"), row, strict=True))
    return tuple(values.get(getattr(term, "column", ""), DAY) for term in terms)


def busy_seconds(redis: Redis) -> float:
    """What Redis' main thread has used of its processor."""
    info = redis.info("cpu")
    return float(info["used_cpu_user_main_thread"]) + float(info["used_cpu_sys_main_thread"])


def ingest(world: World, report: Report, rounds: int, table_rows: int) -> None:
    """ingest.groups: batches of 10,000 rows through ingest, over the same table, for one counter and with its groups."""
    rows.fill(world, 0)
    sides: dict[str, Callable[[], float]] = {}
    for name, text in (("plain", PLAIN), ("grouped", GROUPED)):
        world.declare(text)
        sides[name] = Batches(world, world.ingest_for(name)).through_ingest
        sides[name]()  # connections, caches; from here on the members are known

    found = {name: [1e6 / rate for rate in rates] for name, rates in by_turns(2 * rounds, sides).items()}
    report.add(
        Result("ingest.groups", "µs a row", "one plain counter, µs a row", paired(found, "grouped", "plain"), goal=-2.0,
               note="batches of 10,000 rows over HTTP, acknowledged and counted; total with last day, 50 groups, 5,000 groups")
    )  # fmt: skip
    rows.fill(world, 0)


def builds(world: World, report: Report, rounds: int, table_rows: int) -> None:
    """build.groups: cold builds of a set, of last days, and of groups."""
    visits.make(world)
    visits.fill(world, table_rows)
    world.declare(BUILDS)
    visits.adopt(world)
    _ = world.replica
    wait_until_replayed(world)

    def cold_build(name: str) -> float:
        with world.redis() as redis:
            redis.flushdb()
        return float(run(world, "loadtest.bench.builds", name).output)

    made = {
        name: run_sql(world.primary.url, f"SELECT count(*) FROM ({statement}) AS e")[0][0]
        for name, statement in FLOORS.items()
    }
    found = by_turns(rounds, {name: partial(cold_build, name) for name in FLOORS})
    least = by_turns(rounds, {name: partial(floor_seconds, world, statement) for name, statement in FLOORS.items()})
    an_element = {name: [seconds * 1e6 / made[name] for seconds in took] for name, took in found.items()}
    for name, many in made.items():
        report.add(
            Result(f"build.groups.{name}", "s", "its SELECT DISTINCT and SADD, s",
                   list(zip(found[name], least[name], strict=True)), goal=-1.5, note=f"{table_rows:,} rows, {many:,} elements"),
            Result(f"build.groups.{name}.element", "µs an element", "of the plain counter, µs", paired(an_element, name, "plain")),
        )  # fmt: skip


def floor_seconds(world: World, statement: str) -> float:
    """The floor's seconds."""
    return floor(world, statement)[0]


def memory(world: World, report: Report, rounds: int, table_rows: int) -> None:
    """memory.groups: all keys of a counter, beside 41 bytes a member and 110 a group."""
    world.declare(visits.DECLARATIONS + '\n[counters.plain]\ntable = "visit"\nmember = ["visitor"]\n')
    for name, what, groups in (
        ("plain", "set", 0),
        ("visitors", "last seen", DAYS_SEEN),
        ("visitors:page", "10 groups", 10),
        ("visitors:page", "20,000 groups", 20_000),
        ("visitors:page", "100,000 groups", 100_000),
    ):
        with world.redis() as redis:
            redis.flushdb()
            made = [b"v%08d" % number for number in range(MEMBERS)]
            if name == "visitors":
                made = [b"2026-%02d-01\0%b" % (number % groups + 1, member) for number, member in enumerate(made)]
            elif groups:
                made = [b"page-%d\0%b" % (number % groups, member) for number, member in enumerate(made)]
            steps.record(redis, {name: made})
            stem = keys.of_counter(name).members.removesuffix("members")
            found = list(redis.scan_iter(stem.replace("[", "?") + "*", count=1_000))
            used = sum(redis.memory_usage(key, samples=0) or 0 for key in found)
        of_groups = BYTES_A_GROUP * groups / MEMBERS if name == "visitors:page" else 0
        report.add(
            Result(f"memory.groups.{what}", "bytes a member", f"{BYTES_A_MEMBER} a member, {BYTES_A_GROUP} a group",
                   [(used / MEMBERS, BYTES_A_MEMBER + of_groups)], goal=-1.05, note=f"{MEMBERS:,} members of 9 bytes")
        )  # fmt: skip


CASES: Mapping[str, Callable[[World, Report, int, int], None]] = {
    "recording.groups": recording,
    "ingest.groups": ingest,
    "build.groups": builds,
    "memory.groups": memory,
}
