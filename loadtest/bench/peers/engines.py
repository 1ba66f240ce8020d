"""Other engines that count distinct visitors by page and by day: `python -m loadtest.bench.peers.engines ENGINE CSV SINCE`.

CSV has the visits: id, visitor, page, day. The engine loads them, answers the questions, forgets the tenth of the visits whose
id ends with 0 (if it can), and answers again. Prints JSON: for each question the median of its milliseconds, its answer, and the
answer afterwards. The engines are not in the lock file: BENCH_ENGINES names a folder that `pip install --target` has made.
Exit code 3: the engine is not there.
"""

from __future__ import annotations

import csv
import json
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

TIMES, TOP = 7, 10
PAGE = "page-0"
NOT_THERE = 3
# The precision of the sketches: 2^12 buckets, with a standard error of 1 to 1.6 %.
LG_BUCKETS = 12

Questions = dict[str, Callable[[], Any]]


def duckdb_exact(path: str, since: str) -> tuple[Questions, Callable[[], None] | None]:
    """DuckDB over a table of its own: COUNT(DISTINCT)."""
    duckdb: Any = import_module("duckdb")
    db = duckdb.connect()
    db.execute(
        f"CREATE TABLE visit AS SELECT * FROM read_csv('{path}', header = false, columns = "
        "{'id': 'BIGINT', 'visitor': 'VARCHAR', 'page': 'VARCHAR', 'day': 'DATE'}) ORDER BY page, day"
    )

    def asked(statement: str) -> Callable[[], Any]:
        return lambda: db.execute(statement).fetchall()

    return exact_questions(asked, since), lambda: db.execute("DELETE FROM visit WHERE id % 10 = 0")


def chdb_session(path: str) -> Any:
    session = import_module("chdb.session").Session()
    session.query("CREATE DATABASE bench")
    session.query(
        "CREATE TABLE bench.visit (id Int64, visitor String, page String, day Date) ENGINE = MergeTree ORDER BY (page, day)"
    )
    session.query(
        f"INSERT INTO bench.visit SELECT * FROM file('{path}', CSV, 'id Int64, visitor String, page String, day Date')"
    )
    return session


def chdb_exact(path: str, since: str) -> tuple[Questions, Callable[[], None] | None]:
    """ClickHouse, in this process, over a table that is sorted by page: uniqExact."""
    session = chdb_session(path)

    def asked(statement: str) -> Callable[[], Any]:
        text = statement.replace("count(DISTINCT visitor)", "uniqExact(visitor)").replace(
            "FROM visit", "FROM bench.visit"
        )
        return lambda: json.loads(str(session.query(text, "JSONCompact")))["data"]

    return exact_questions(asked, since), lambda: session.query("DELETE FROM bench.visit WHERE id % 10 = 0")


def chdb_states(path: str, since: str) -> tuple[Questions, Callable[[], None] | None]:
    """The same, with a state of `uniq` for each page and for each day, which are merged. A state forgets nobody."""
    session = chdb_session(path)
    for key, type_ in (("page", "String"), ("day", "Date")):
        session.query(
            f"CREATE TABLE bench.by_{key} ({key} {type_}, visitors AggregateFunction(uniq, String)) "
            f"ENGINE = AggregatingMergeTree ORDER BY {key}"
        )
        session.query(
            f"INSERT INTO bench.by_{key} SELECT {key}, uniqState(visitor) FROM bench.visit GROUP BY {key} "
            "SETTINGS max_bytes_before_external_group_by = 0"
        )

    def asked(statement: str) -> Callable[[], Any]:
        return lambda: json.loads(str(session.query(statement, "JSONCompact")))["data"]

    return {
        "top": asked(
            f"SELECT page, uniqMerge(visitors) AS n FROM bench.by_page GROUP BY page ORDER BY n DESC LIMIT {TOP}"
        ),
        "group": asked(f"SELECT uniqMerge(visitors) FROM bench.by_page WHERE page = '{PAGE}'"),
        "window": asked(f"SELECT uniqMerge(visitors) FROM bench.by_day WHERE day >= '{since}'"),
    }, None


def sketches(path: str, since: str) -> tuple[Questions, Callable[[], None] | None]:
    """Apache DataSketches: an HLL sketch for each page and each day, in this process. A sketch forgets nobody."""
    apache: Any = import_module("datasketches")
    by_page: Any = defaultdict(lambda: apache.hll_sketch(LG_BUCKETS))
    by_day: Any = defaultdict(lambda: apache.hll_sketch(LG_BUCKETS))
    with Path(path).open(newline="") as file:
        for _, visitor, page, day in csv.reader(file):
            by_page[page].update(visitor)
            by_day[day].update(visitor)

    def top() -> Any:
        found = sorted(((each.get_estimate(), page) for page, each in by_page.items()), reverse=True)[:TOP]
        return [(page, estimate) for estimate, page in found]

    def window() -> Any:
        union = apache.hll_union(LG_BUCKETS)
        for day, each in by_day.items():
            if day >= since:
                union.update(each)
        return union.get_estimate()

    return {"top": top, "group": by_page[PAGE].get_estimate, "window": window}, None


ENGINES = {
    "DuckDB": duckdb_exact,
    "ClickHouse (chdb), uniqExact": chdb_exact,
    "ClickHouse (chdb), merged states of uniq": chdb_states,
    "Apache DataSketches, merged HLL": sketches,
}


def exact_questions(asked: Callable[[str], Callable[[], Any]], since: str) -> Questions:
    """The questions in SQL, over a table of visits."""
    return {
        "top": asked(f"SELECT page, count(DISTINCT visitor) AS n FROM visit GROUP BY page ORDER BY n DESC LIMIT {TOP}"),
        "group": asked(f"SELECT count(DISTINCT visitor) FROM visit WHERE page = '{PAGE}'"),
        "window": asked(f"SELECT count(DISTINCT visitor) FROM visit WHERE day >= '{since}'"),
    }


def number_of(answer: Any) -> float:
    """The last number of the first row."""
    while isinstance(answer, (list, tuple)):
        answer = answer[0] if isinstance(answer[0], (list, tuple)) else answer[-1]
    return float(answer)


def main() -> int:
    engine, path, since = sys.argv[1:]
    if folder := os.environ.get("BENCH_ENGINES"):
        sys.path.append(folder)
    try:
        questions, forget = ENGINES[engine](path, since)
    except ImportError:
        return NOT_THERE
    found: dict[str, list[float]] = {}
    for name, ask in questions.items():
        took = []
        for _ in range(TIMES):
            began = time.perf_counter()
            answer = ask()
            took.append(time.perf_counter() - began)
        found[name] = [statistics.median(took) * 1000, number_of(answer)]
    if forget is not None:
        forget()
    for name, ask in questions.items():
        found[name].append(number_of(ask()))
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
